//! The HTTP thread: owns plain data only, so that the thread of PostgreSQL never waits for a network.
//!
//! One request is out at a time. The thread calls `notify` when a reply is there. To give up, the caller drops the
//! [`Http`], which shuts the connection down and does not wait for the thread. The thread also reads certificates and
//! keys, because their files may be on a slow file system.

use super::address::Allowed;
use super::resolve::{Filtered, NotAllowed};
use super::tls;
use crate::Settings;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use ureq::http::StatusCode;
use ureq::unversioned::transport::DefaultConnector;

/// Bytes of an answer that are read for each change sent, beside [`ANSWER_BYTES`]: an answer names every key, perhaps
/// with an error text.
const ANSWER_BYTES_PER_CHANGE: u64 = 4096;
const ANSWER_BYTES: u64 = 64 * 1024;
/// Above this size a request is sent with `Expect: 100-continue`, so that an early 413 or 401 is not lost to a reset.
const EXPECT_ABOVE: usize = 1024 * 1024;
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is kept, however busy it is. After that the name is looked up again, so that a name that has
/// moved is followed even while the old server still answers.
const CONNECTION_AGE: Duration = Duration::from_secs(10);

/// What a request is made of.
#[derive(Debug)]
pub struct Request {
    pub url: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Changes in it: bounds how long an answer may be.
    pub changes: usize,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Response {
    pub status: u16,
    pub retry_after: Option<String>,
    pub date: Option<String>,
    pub location_host: Option<String>,
    /// Its content type is `text/html`.
    pub html: bool,
    pub body: Vec<u8>,
}

/// Why there is no response.
#[derive(Debug)]
pub enum NoResponse {
    /// DNS, refused, TLS, timeout, ..: the outcome is unknown.
    Offline(String),
    /// The host's address may not be connected to: nothing was sent.
    NotAllowed(String),
    /// A setting, or a file that one names, cannot be used: nothing was sent.
    Unusable(String),
}

pub type Reply = Result<Response, NoResponse>;

/// Threads that were given up, as long as they run: a thread cannot be interrupted while it connects or looks a name
/// up.
static GIVEN_UP: Mutex<Vec<Weak<AtomicBool>>> = Mutex::new(Vec::new());

/// How many threads of this process run although they were given up; each ends within `connect_timeout`.
pub fn given_up() -> usize {
    still_running().len()
}

/// The threads that were given up, without those that have ended.
fn still_running() -> MutexGuard<'static, Vec<Weak<AtomicBool>>> {
    let mut threads = GIVEN_UP.lock().unwrap_or_else(PoisonError::into_inner);
    threads.retain(|thread| thread.strong_count() > 0);
    threads
}

/// A running HTTP thread.
pub struct Http {
    jobs: Sender<Request>,
    replies: Receiver<Reply>,
    /// Made by the thread.
    agent: Arc<OnceLock<ureq::Agent>>,
    /// Nobody waits for a reply any more: no further request may begin.
    given_up: Arc<AtomicBool>,
}

impl Http {
    /// Starts the thread. The caller blocks signals around this call, because the thread inherits the mask.
    pub fn start(settings: &Settings, notify: impl Fn() + Send + 'static) -> Result<Self, String> {
        let (jobs, inbox) = channel::<Request>();
        let (outbox, replies) = channel::<Reply>();
        let agent = Arc::new(OnceLock::new());
        let given_up = Arc::new(AtomicBool::new(false));
        let (shared, settings, no_more) = (agent.clone(), settings.clone(), given_up.clone());
        std::thread::Builder::new()
            .name("sync_outbox http".into())
            .spawn(move || {
                let mut client = Client::new(&settings, &shared);
                while let Ok(request) = inbox.recv() {
                    if no_more.load(Ordering::SeqCst) {
                        return;
                    }
                    let reply = match &mut client {
                        Ok(client) => client.perform(&request),
                        Err(why) => Err(NoResponse::Unusable(why.clone())),
                    };
                    drop(request); // a large body is not kept until the next one comes
                    if outbox.send(reply).is_err() {
                        return;
                    }
                    notify();
                }
            })
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Http { jobs, replies, agent, given_up })
    }

    /// Hands a request to the thread.
    pub fn send(&self, request: Request) {
        // A thread that is gone is noticed in `reply`.
        let _ = self.jobs.send(request);
    }

    /// The reply, if it is there.
    pub fn reply(&self) -> Option<Reply> {
        match self.replies.try_recv() {
            Ok(reply) => Some(reply),
            Err(std::sync::mpsc::TryRecvError::Empty) => None,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                Some(Err(NoResponse::Offline("the HTTP thread ended".into())))
            }
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // Before the agent is looked for: the thread makes it before it looks here.
        self.given_up.store(true, Ordering::SeqCst);
        if let Some(agent) = self.agent.get() {
            agent.clone().shutdown();
        }
        still_running().push(Arc::downgrade(&self.given_up));
    }
}

/// What the thread remembers from request to request.
struct Client {
    agent: ureq::Agent,
    compress: bool,
    /// Large requests use `Expect: 100-continue`, until the server answers 417.
    expect: bool,
    /// Since when there may be a kept connection.
    connected: Option<Instant>,
}

/// Which connection a request goes over.
#[derive(Clone, Copy, PartialEq)]
enum ConnectionChoice {
    Any,
    New,
}

impl Client {
    fn new(settings: &Settings, shared: &OnceLock<ureq::Agent>) -> Result<Self, String> {
        let agent = agent(settings)?;
        let agent = shared.get_or_init(|| agent).clone();
        Ok(Client { agent, compress: settings.compression, expect: true, connected: None })
    }

    fn perform(&mut self, request: &Request) -> Reply {
        let started = Instant::now();
        let kept = self.connected.is_some_and(|since| since.elapsed() < CONNECTION_AGE);
        if !kept {
            self.connected = Some(started);
        }
        let mut result = self.attempt(request, if kept { ConnectionChoice::Any } else { ConnectionChoice::New });
        let again = match &result {
            // That the server has closed a kept connection meanwhile does not mean that it is down.
            Err(failure) => kept && failure.stale && started.elapsed() < Duration::from_secs(1),
            // The kept connection led to the wrong server (RFC 9110, 15.5.20).
            Ok(response) => kept && response.status == StatusCode::MISDIRECTED_REQUEST.as_u16(),
        };
        if again {
            result = self.attempt(request, ConnectionChoice::New);
        }
        if self.expect && result.as_ref().is_ok_and(|r| r.status == StatusCode::EXPECTATION_FAILED.as_u16()) {
            self.expect = false;
            result = self.attempt(request, ConnectionChoice::New);
        }
        result.map_err(|failure| {
            let text = wire::text::sanitise(&failure.text, 300);
            if failure.not_allowed { NoResponse::NotAllowed(text) } else { NoResponse::Offline(text) }
        })
    }

    fn attempt(&self, request: &Request, connection: ConnectionChoice) -> Result<Response, AttemptError> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.exchange(request, connection)))
            .unwrap_or_else(|_| Err(AttemptError::new("the HTTP client failed".into())))
    }

    fn exchange(&self, request: &Request, connection: ConnectionChoice) -> Result<Response, AttemptError> {
        let mut call = self.agent.post(&request.url).header("Content-Type", "application/json");
        if connection == ConnectionChoice::New {
            call = call.config().max_idle_age(Duration::ZERO).build();
        }
        for (name, value) in &request.headers {
            call = call.header(*name, value);
        }
        let packed;
        let body = if self.compress {
            packed = gzip(&request.body)?;
            call = call.header("Content-Encoding", "gzip");
            &packed
        } else {
            &request.body
        };
        if self.expect && body.len() > EXPECT_ABOVE {
            call = call.header("Expect", "100-continue");
        }
        let response = call.send(&body[..])?;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (retry_after, date, location) = (header("retry-after"), header("date"), header("location"));
        let html = header("content-type").is_some_and(|t| t.trim_start().to_ascii_lowercase().starts_with("text/html"));
        let status = response.status();
        let most = ANSWER_BYTES + ANSWER_BYTES_PER_CHANGE * request.changes as u64;
        let mut answer = Bounded(Vec::new());
        std::io::copy(&mut response.into_body().into_reader().take(most + 1), &mut answer)?;
        let Bounded(answer) = answer;
        if answer.len() as u64 > most && status.is_success() {
            return Err(AttemptError::new(format!("the answer is longer than {most} bytes")));
        }
        Ok(Response {
            status: status.as_u16(),
            html,
            retry_after,
            date,
            location_host: location.and_then(|l| url::Url::parse(&l).ok()?.host_str().map(str::to_owned)),
            body: answer,
        })
    }
}

/// Why there is no response.
struct AttemptError {
    text: String,
    /// The connection broke in a way that a closed kept connection does.
    stale: bool,
    /// Nothing was connected to, because it may not be.
    not_allowed: bool,
}

impl AttemptError {
    fn new(text: String) -> Self {
        AttemptError { text, stale: false, not_allowed: false }
    }
}

impl From<ureq::Error> for AttemptError {
    fn from(error: ureq::Error) -> Self {
        let stale = matches!(&error, ureq::Error::Io(e) if matches!(
            e.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::UnexpectedEof
        ));
        let not_allowed = matches!(&error, ureq::Error::Other(e) if e.is::<NotAllowed>());
        let text = match &error {
            ureq::Error::Other(other) => other.to_string(),
            ureq::Error::Timeout(phase) => format!("timeout ({phase})"),
            ureq::Error::HostNotFound => "host not found".into(),
            ureq::Error::ConnectionFailed => "connection failed".into(),
            other => other.to_string(),
        };
        AttemptError { text, stale, not_allowed }
    }
}

impl From<std::io::Error> for AttemptError {
    fn from(error: std::io::Error) -> Self {
        AttemptError::from(ureq::Error::from(error))
    }
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Bounded(Vec::new()), flate2::Compression::fast());
    encoder.write_all(body)?;
    Ok(encoder.finish()?.0)
}

/// Bytes for which there may be no memory: then writing fails, where a `Vec` would end the process.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.try_reserve(bytes.len()).map_err(|_| std::io::Error::from(ErrorKind::OutOfMemory))?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn agent(settings: &Settings) -> Result<ureq::Agent, String> {
    let proxy = settings
        .proxy
        .as_deref()
        .map(|url| ureq::Proxy::new(url).map_err(|_| "sync_outbox.proxy is not a proxy's URL".to_owned()))
        .transpose()?;
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(proxy)
        .user_agent(concat!("sync_outbox/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(RESOLVE_TIMEOUT.min(settings.connect_timeout)))
        .timeout_connect(Some(settings.connect_timeout))
        .timeout_global(Some(settings.request_timeout))
        .tls_config(tls::config(settings)?)
        .build();
    // A proxy was chosen by the server's operator, and looks the names up itself.
    let allowed = match settings.proxy {
        None => Allowed::from_setting(&settings.allowed_addresses)?,
        Some(_) => Allowed::default(),
    };
    Ok(ureq::Agent::with_parts(config, DefaultConnector::default(), Filtered::new(allowed)))
}
