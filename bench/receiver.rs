//! The receiver of the benchmarks: fast enough that it is never what is measured, and yet an honest one. Every body is
//! parsed to its end, every `dedup_key` is taken out of it and acknowledged by name.
//!
//! It writes its port to standard output, and is controlled over the same port: `GET /stats` counts what came since
//! `POST /config {"latency_ms": 20, "record": true}`, and `GET /arrivals` lists when the key of each recorded change
//! arrived (microseconds since 1970). Everything else is an upload.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::answer::AnswerWriter;

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ReceiverConfig {
    latency_ms: u64,
    record: bool,
}

#[derive(Clone, Copy, Default, Serialize)]
struct UploadCounts {
    requests: u64,
    changes: u64,
    bytes: u64,
    /// When the first upload arrived.
    first_us: u64,
}

#[derive(Default)]
struct ReceiverState {
    config: ReceiverConfig,
    stats: UploadCounts,
    arrivals: Vec<(Box<RawValue>, u64)>,
}

type Shared = Arc<Mutex<ReceiverState>>;

/// Runs something on the state. A thread that has panicked with the lock held leaves counts that can still be used.
fn locked<T>(shared: &Shared, work: impl FnOnce(&mut ReceiverState) -> T) -> T {
    work(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

fn main() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let shared = Shared::default();
    for stream in listener.incoming() {
        let (stream, shared) = (stream?, shared.clone());
        thread::spawn(move || match serve(stream, &shared) {
            Err(error) if error.kind() == ErrorKind::InvalidData => eprintln!("bench receiver: {error}"),
            _ => {} // the sender has closed the connection, or broken it off
        });
    }
    Ok(())
}

/// Answers the requests of one connection until the other side closes it.
fn serve(stream: TcpStream, shared: &Shared) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(256 * 1024, stream);
    let (mut body, mut unpacked) = (Vec::new(), Vec::new());
    while !reader.fill_buf()?.is_empty() {
        let arrived = now_us();
        let head = Head::read(&mut reader)?;
        if head.expects_continue {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        head.read_body(&mut reader, &mut body)?;
        let answer = match (head.method.as_str(), head.path.as_str()) {
            ("GET", "/stats") => json(&locked(shared, |state| state.stats))?,
            ("GET", "/arrivals") => locked(shared, |state| json(&state.arrivals))?,
            ("POST", "/config") => {
                let config = serde_json::from_slice(&body)?;
                locked(shared, |state| *state = ReceiverState { config, ..ReceiverState::default() });
                b"{}".to_vec()
            }
            _ if head.is_gzip => {
                unpacked.clear();
                flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut unpacked)?;
                upload(&unpacked, body.len(), arrived, shared)?
            }
            _ => upload(&body, body.len(), arrived, shared)?,
        };
        let mut response =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len())
                .into_bytes();
        response.extend_from_slice(&answer);
        writer.write_all(&response)?;
    }
    Ok(())
}

/// Takes the keys of an upload and acknowledges them.
fn upload(body: &[u8], bytes_on_the_wire: usize, arrived: u64, shared: &Shared) -> Result<Vec<u8>> {
    let body = std::str::from_utf8(body).map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
    let changes = wire::body::identities(body).map_err(|why| Error::new(ErrorKind::InvalidData, why))?;
    let mut answer = AnswerWriter::default();
    let mut keys = Vec::new();
    let record = locked(shared, |state| state.config.record);
    let count = changes.len() as u64;
    for change in changes {
        if let Some(pk) = change.pk.filter(|_| record) {
            keys.push(pk.to_owned());
        }
        answer.ack(change.dedup_key);
    }
    let config = locked(shared, |state| {
        let stats = &mut state.stats;
        if stats.requests == 0 {
            stats.first_us = arrived;
        }
        stats.requests += 1;
        stats.changes += count;
        stats.bytes += bytes_on_the_wire as u64;
        state.arrivals.extend(keys.into_iter().map(|pk| (pk, arrived)));
        state.config
    });
    thread::sleep(Duration::from_millis(config.latency_ms));
    Ok(answer.json().into_bytes())
}

/// The parts of a request's head that matter here.
#[derive(Default)]
struct Head {
    method: String,
    path: String,
    length: usize,
    is_chunked: bool,
    is_gzip: bool,
    expects_continue: bool,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> Result<Self> {
        let request = line(reader)?;
        let mut words = request.split(' ').map(str::to_owned);
        let mut word = || words.next().ok_or_else(|| malformed("request line"));
        let mut head = Head { method: word()?, path: word()?, ..Head::default() };
        loop {
            let field = line(reader)?;
            let Some((name, value)) = field.split_once(':') else {
                return if field.is_empty() { Ok(head) } else { Err(malformed("header")) };
            };
            let value = value.trim().to_ascii_lowercase();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = value.parse().map_err(|_| malformed("Content-Length"))?,
                "transfer-encoding" => head.is_chunked = value == "chunked",
                "content-encoding" => head.is_gzip = value == "gzip",
                "expect" => head.expects_continue = value == "100-continue",
                _ => {}
            }
        }
    }

    fn read_body(&self, reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
        body.clear();
        if !self.is_chunked {
            return append(reader, self.length, body);
        }
        loop {
            let size = line(reader)?;
            let size = size.split(';').next().unwrap_or_default();
            match usize::from_str_radix(size, 16).map_err(|_| malformed("chunk size"))? {
                0 => break,
                size => append(reader, size, body)?,
            }
            line(reader)?;
        }
        while !line(reader)?.is_empty() {} // trailers
        Ok(())
    }
}

fn append(reader: &mut impl BufRead, length: usize, body: &mut Vec<u8>) -> Result<()> {
    let had = body.len();
    body.resize(had + length, 0);
    reader.read_exact(&mut body[had..])
}

fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("malformed {what}"))
}

/// Wall-clock time, which the writer of the latency measurement reads too.
fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
