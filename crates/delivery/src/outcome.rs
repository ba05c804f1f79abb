//! What a reply means for the batch that it answers.

use super::backoff;
use super::batch::Batch;
use super::http::{NoResponse, Reply, Response};
use super::keys::Parked;
use std::time::Duration;
use wire::answer::{Answer, Verdict};
use wire::text::sanitise;

/// How many characters of a foreign error text are kept.
pub const ERROR_CHARS: usize = 2000;

/// The meaning of one reply.
#[derive(Debug)]
pub enum Outcome {
    /// A verdict on each change.
    Answered(Answer),
    /// 400, 422: some change in it is not accepted. Bisect; alone, the change is refused.
    Poison { error: String },
    /// 413: halve; alone, the change is refused.
    TooLarge { error: String },
    /// It says nothing about single changes, and nothing more can be sent now.
    Failure(Failure),
}

/// Why nothing more can be sent to a target now.
#[derive(Debug, Clone)]
pub struct Failure {
    pub kind: FailureKind,
    pub error: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FailureKind {
    /// The request did not get through: rows become FAILED, the breaker opens. The target may have said how long to
    /// wait.
    NotThrough { retry_after: Option<Duration> },
    /// Everything that was tried was refused by the status of the responses (see `push/suspicion.rs` of the extension).
    Rejected,
    /// 401, 403, or 407 of a proxy: the token is not accepted. Rows stay as they are.
    Unauthorized,
    /// The endpoint is not what it should be (redirect, 404, ..): rows stay as they are, slow probe.
    Misconfigured,
    /// 410: the target is gone. Rows stay as they are, and nothing is sent until an administrator resumes.
    Gone,
    /// A setting of ours, or a file that one names, cannot be used: nothing was sent.
    Unusable,
}

impl FailureKind {
    fn with(self, error: String) -> Outcome {
        Outcome::Failure(Failure { kind: self, error })
    }
}

/// Reads a reply by the table of the wire: only a 2xx with a JSON object says anything about single changes.
pub fn classify(reply: Reply) -> Outcome {
    let response = match reply {
        Ok(response) => response,
        Err(NoResponse::Offline(error)) => {
            return FailureKind::NotThrough { retry_after: None }.with(format!("offline: {error}"));
        }
        Err(NoResponse::NotAllowed(error)) => return FailureKind::Misconfigured.with(error),
        Err(NoResponse::Unusable(error)) => return FailureKind::Unusable.with(error),
    };
    let error = describe(&response);
    let retry_after = response.retry_after.as_deref().and_then(|h| backoff::retry_after(h, response.date.as_deref()));
    let not_through = FailureKind::NotThrough { retry_after };
    match response.status {
        200..=299 => match Answer::parse(&response.body) {
            Some(answer) => Outcome::Answered(answer),
            // A hotel or a proxy answers in the target's place with a page of its own.
            None if response.html => not_through.with(format!("{error} (a web page, and no answer of the target)")),
            None => not_through.with(format!("{error} (the answer is not the JSON it should be)")),
        },
        400 | 422 => Outcome::Poison { error },
        413 => Outcome::TooLarge { error },
        401 | 403 | 407 => FailureKind::Unauthorized.with(error),
        410 => FailureKind::Gone.with(error),
        408 | 409 | 421 | 425 | 429 => not_through.with(error),
        // Not the target's answer: a network on the way requires a login (RFC 6585).
        511 => not_through.with(format!("offline: {error}")),
        501 | 505 => FailureKind::Misconfigured.with(error),
        500..=599 => not_through.with(error),
        300..=399 => {
            let to = response.location_host.as_deref().unwrap_or("nowhere");
            FailureKind::Misconfigured.with(sanitise(&format!("{error} (redirect to {to}, not followed)"), ERROR_CHARS))
        }
        _ => FailureKind::Misconfigured.with(error),
    }
}

fn describe(response: &Response) -> String {
    let text = sanitise(&String::from_utf8_lossy(&response.body), ERROR_CHARS);
    match (response.status, text.is_empty()) {
        (200..=299, _) | (_, true) => format!("http {}", response.status),
        _ => format!("http {}: {text}", response.status),
    }
}

/// The verdict on every picked change. A change that was not acked though a later one of its key was is in conflict:
/// sending it again would reverse the order of that key.
pub fn verdicts(batch: &Batch, picked: &[usize], answer: &Answer) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = picked.iter().map(|i| answer.verdict(&batch.changes[*i].dedup_key)).collect();
    if verdicts.iter().all(|verdict| *verdict == Verdict::Acked) {
        return verdicts;
    }
    let mut acked_later = Parked::default();
    for (i, verdict) in picked.iter().zip(verdicts.iter_mut()).rev() {
        let touched = batch.touched(&batch.changes[*i]);
        if *verdict == Verdict::Acked {
            acked_later.park(&touched, i64::MIN); // whatever the ids are: the order of sending counts
        } else if acked_later.blocks(&touched, batch.changes[*i].id) {
            *verdict = Verdict::Conflict("later change acked".into());
        }
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &str) -> Reply {
        Ok(Response { status, body: body.as_bytes().to_vec(), ..Response::default() })
    }

    fn name(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Answered(_) => "answered",
            Outcome::Poison { .. } => "poison",
            Outcome::TooLarge { .. } => "too large",
            Outcome::Failure(failure) => match failure.kind {
                FailureKind::NotThrough { .. } => "not through",
                FailureKind::Rejected => "rejected",
                FailureKind::Unauthorized => "unauthorized",
                FailureKind::Misconfigured => "misconfigured",
                FailureKind::Gone => "gone",
                FailureKind::Unusable => "unusable",
            },
        }
    }

    fn failure(reply: Reply) -> Failure {
        match classify(reply) {
            Outcome::Failure(failure) => failure,
            outcome => panic!("{outcome:?}"),
        }
    }

    #[test]
    fn every_status_means_something() {
        for status in 100..600 {
            let expected = match status {
                200..=299 => "answered",
                400 | 422 => "poison",
                413 => "too large",
                401 | 403 | 407 => "unauthorized",
                410 => "gone",
                408 | 409 | 421 | 425 | 429 => "not through",
                501 | 505 => "misconfigured",
                500..=599 => "not through",
                _ => "misconfigured",
            };
            assert_eq!(name(&classify(response(status, "{}"))), expected, "{status}");
        }
    }

    #[test]
    fn a_200_that_is_not_json_is_no_answer() {
        assert!(failure(response(200, "<html>Please log in</html>")).error.starts_with("http 200"));
        let page = Response { status: 200, html: true, body: b"<html>".to_vec(), ..Response::default() };
        assert!(failure(Ok(page)).error.contains("a web page"));
    }

    #[test]
    fn a_network_that_wants_a_login_is_offline() {
        assert_eq!(failure(response(511, "")).error, "offline: http 511");
    }

    #[test]
    fn an_address_that_may_not_be_connected_to_is_no_refusal() {
        assert_eq!(failure(Err(NoResponse::NotAllowed("is link-local".into()))).error, "is link-local");
    }

    #[test]
    fn a_failed_connection_is_offline() {
        assert_eq!(failure(Err(NoResponse::Offline("connection refused".into()))).error, "offline: connection refused");
    }

    #[test]
    fn retry_after_is_passed_on() {
        let reply = Ok(Response { status: 503, retry_after: Some("7".into()), ..Response::default() });
        let retry_after = Some(Duration::from_secs(7));
        assert_eq!(failure(reply).kind, FailureKind::NotThrough { retry_after });
    }
}
