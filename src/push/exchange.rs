//! Having one batch answered: requests, halving and bisecting, until every change has a word or the target is found down.

use super::session::{Destination, Waiting};
use crate::delivery::answer::{Answer, Word};
use crate::delivery::batch::Batch;
use crate::delivery::http::{Reply, Request};
use crate::delivery::keys::Parked;
use crate::delivery::outcome::{self, Outcome};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Unreserved characters and spaces of a reason stay readable; everything else is percent-encoded (UTF-8).
const REASON: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b' ').remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b',');

/// The word on a change of the batch, by its position.
pub struct Said {
    pub change: usize,
    pub word: Word,
}

/// Why no word came for the rest of a batch.
pub enum Trouble {
    /// These changes went out and did not get through.
    NotThrough {
        changes: Vec<usize>,
        error: String,
        retry_after: Option<Duration>,
    },
    Unauthorized {
        error: String,
    },
    Misconfigured {
        error: String,
    },
    Gone {
        error: String,
    },
}

/// What came of a batch.
#[derive(Default)]
pub struct Answered {
    pub said: Vec<Said>,
    /// Changes whose turn did not come because an earlier one of their key was refused in this very batch.
    pub blocked: Vec<usize>,
    pub trouble: Option<Trouble>,
    /// The server said 413: read less at a time from now on.
    pub too_large: bool,
}

/// Sends the picked changes of a batch. `wait` has the request answered and may do other work meanwhile.
pub fn exchange(
    batch: &Batch,
    picked: Vec<usize>,
    parked: &mut Parked,
    destination: &Destination,
    wait: &mut dyn Waiting,
) -> Answered {
    let mut answered = Answered::default();
    let mut parts = vec![picked];
    while let Some(part) = parts.pop() {
        let part = without_blocked(batch, part, parked, &mut answered.blocked);
        if part.is_empty() {
            continue;
        }
        let reply: Reply = wait.reply_to(request(batch, &part, destination));
        match outcome::classify(reply) {
            Outcome::Answered(answer) => take(batch, &part, &answer, parked, &mut answered),
            Outcome::TooLarge { error } | Outcome::Poison { error } if part.len() == 1 => {
                refuse(batch, part[0], error, parked, &mut answered)
            }
            Outcome::TooLarge { .. } => {
                answered.too_large = true;
                halve(part, &mut parts)
            }
            Outcome::Poison { .. } => halve(part, &mut parts),
            Outcome::Unauthorized { error } => {
                answered.trouble = Some(Trouble::Unauthorized { error });
                break;
            }
            Outcome::Misconfigured { error } => {
                answered.trouble = Some(Trouble::Misconfigured { error });
                break;
            }
            Outcome::Gone { error } => {
                answered.trouble = Some(Trouble::Gone { error });
                break;
            }
            Outcome::NotThrough { error, retry_after } => {
                answered.trouble = Some(Trouble::NotThrough { changes: part, error, retry_after });
                break;
            }
        }
    }
    answered
}

/// Two halves on the stack, the earlier one on top: order holds.
fn halve(mut part: Vec<usize>, parts: &mut Vec<Vec<usize>>) {
    let later = part.split_off(part.len() / 2);
    parts.push(later);
    parts.push(part);
}

fn without_blocked(batch: &Batch, part: Vec<usize>, parked: &mut Parked, blocked: &mut Vec<usize>) -> Vec<usize> {
    if parked.is_empty() {
        return part;
    }
    part.into_iter()
        .filter(|i| {
            let change = &batch.changes[*i];
            let touched = batch.touched(change);
            let waits = parked.blocks(&touched, change.id);
            if waits {
                parked.park(&touched, change.id);
                blocked.push(*i);
            }
            !waits
        })
        .collect()
}

fn take(batch: &Batch, part: &[usize], answer: &Answer, parked: &mut Parked, answered: &mut Answered) {
    for (change, word) in part.iter().zip(outcome::words(batch, part, answer)) {
        if word != Word::Acked {
            park(batch, *change, parked);
        }
        answered.said.push(Said { change: *change, word });
    }
}

fn refuse(batch: &Batch, change: usize, error: String, parked: &mut Parked, answered: &mut Answered) {
    park(batch, change, parked);
    answered.said.push(Said { change, word: Word::Refused(error) });
}

fn park(batch: &Batch, change: usize, parked: &mut Parked) {
    let change = &batch.changes[change];
    parked.park(&batch.touched(change), change.id);
}

fn request(batch: &Batch, part: &[usize], destination: &Destination) -> Request {
    let Destination { endpoint, token, signing, .. } = destination;
    let body = batch.body(part);
    let id = batch.idempotency_key(part);
    let mut headers = vec![("Authorization", format!("Bearer {token}")), ("X-Upload-Token", token.to_owned())];
    if let Some(secrets) = signing {
        // A clock before 1970 is as wrong as one that is a day late: the receiver says so.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        headers.push(("webhook-id", id.clone()));
        headers.push(("webhook-timestamp", now.to_string()));
        headers.push(("webhook-signature", secrets.sign(&id, now, &body)));
    }
    headers.push(("Idempotency-Key", id));
    if let Some(reason) = batch.shared_reason(part) {
        headers.push(("X-Reason", utf8_percent_encode(reason, REASON).to_string()));
    }
    Request { url: endpoint.url.clone(), headers, body, changes: part.len() }
}
