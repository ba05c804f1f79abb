//! What a reply means for the batch that it answers.

use super::answer::{Answer, Word, sanitise};
use super::backoff;
use super::batch::Batch;
use super::http::{NoResponse, Reply, Response};
use super::keys::Parked;
use std::time::Duration;

/// Characters of a stranger's error text that are kept.
pub const ERROR_CHARS: usize = 2000;

/// The meaning of one reply.
#[derive(Debug)]
pub enum Outcome {
    /// A word on each change.
    Answered(Answer),
    /// 400, 422: something in it is poison. Bisect; alone, the change is refused.
    Poison { error: String },
    /// 413: halve; alone, the change is refused.
    TooLarge { error: String },
    /// 401, 403: the token is not accepted. Rows stay as they are.
    Unauthorized { error: String },
    /// The endpoint is not what it should be (redirect, 404, ..): rows stay as they are, slow probe.
    Misconfigured { error: String },
    /// 410: the target wants no more. Rows stay as they are, and nothing is sent until a person says so.
    Gone { error: String },
    /// A setting of ours cannot be used: nothing was sent.
    Unusable { error: String },
    /// The request did not get through: rows become FAILED, the breaker opens.
    NotThrough { error: String, retry_after: Option<Duration> },
}

/// Reads a reply by the table of the wire: only a 2xx with a JSON object says anything about single changes.
pub fn classify(reply: Reply) -> Outcome {
    let response = match reply {
        Ok(response) => response,
        Err(NoResponse::Offline(error)) => {
            return Outcome::NotThrough { error: format!("offline: {error}"), retry_after: None };
        }
        Err(NoResponse::NotAllowed(error)) => return Outcome::Misconfigured { error },
        Err(NoResponse::Unusable(error)) => return Outcome::Unusable { error },
    };
    let error = describe(&response);
    let retry_after = response.retry_after.as_deref().and_then(|h| backoff::retry_after(h, response.date.as_deref()));
    match response.status {
        200..=299 => match Answer::parse(&response.body) {
            Some(answer) => Outcome::Answered(answer),
            // A hotel or a proxy answers in the target's place with a page of its own.
            None if response.html => {
                Outcome::NotThrough { error: format!("{error} (a web page, and no answer of the target)"), retry_after }
            }
            None => {
                Outcome::NotThrough { error: format!("{error} (the answer is not the JSON it should be)"), retry_after }
            }
        },
        400 | 422 => Outcome::Poison { error },
        413 => Outcome::TooLarge { error },
        401 | 403 | 407 => Outcome::Unauthorized { error },
        410 => Outcome::Gone { error },
        408 | 409 | 421 | 425 | 429 => Outcome::NotThrough { error, retry_after },
        // Not the target's word: a network on the way wants a login (RFC 6585).
        511 => Outcome::NotThrough { error: format!("offline: {error}"), retry_after },
        501 | 505 => Outcome::Misconfigured { error },
        500..=599 => Outcome::NotThrough { error, retry_after },
        300..=399 => {
            let to = response.location_host.as_deref().unwrap_or("nowhere");
            Outcome::Misconfigured {
                error: sanitise(&format!("{error} (redirect to {to}, not followed)"), ERROR_CHARS),
            }
        }
        _ => Outcome::Misconfigured { error },
    }
}

fn describe(response: &Response) -> String {
    let text = sanitise(&String::from_utf8_lossy(&response.body), ERROR_CHARS);
    match (response.status, text.is_empty()) {
        (200..=299, _) | (_, true) => format!("http {}", response.status),
        _ => format!("http {}: {text}", response.status),
    }
}

/// The word on every picked change. A change that was not acked though a later one of its key was is in conflict: sending
/// it again would turn the order of that key around.
pub fn words(batch: &Batch, picked: &[usize], answer: &Answer) -> Vec<Word> {
    let mut words: Vec<Word> = picked.iter().map(|i| answer.word(&batch.changes[*i].dedup_key)).collect();
    if words.iter().all(|w| *w == Word::Acked) {
        return words;
    }
    let mut acked_later = Parked::default();
    for (i, word) in picked.iter().zip(words.iter_mut()).rev() {
        let touched = batch.touched(&batch.changes[*i]);
        if *word == Word::Acked {
            acked_later.park(&touched, i64::MIN); // whatever the ids are: the order of sending counts
        } else if acked_later.blocks(&touched, batch.changes[*i].id) {
            *word = Word::Conflict("later change acked".into());
        }
    }
    words
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
            Outcome::Unauthorized { .. } => "unauthorized",
            Outcome::Misconfigured { .. } => "misconfigured",
            Outcome::Gone { .. } => "gone",
            Outcome::Unusable { .. } => "unusable",
            Outcome::NotThrough { .. } => "not through",
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
        let outcome = classify(response(200, "<html>Please log in</html>"));
        assert!(matches!(outcome, Outcome::NotThrough { ref error, .. } if error.starts_with("http 200")));
        let page = Response { status: 200, html: true, body: b"<html>".to_vec(), ..Response::default() };
        let outcome = classify(Ok(page));
        assert!(matches!(outcome, Outcome::NotThrough { ref error, .. } if error.contains("a web page")));
    }

    #[test]
    fn a_network_that_wants_a_login_is_offline() {
        let outcome = classify(response(511, ""));
        assert!(matches!(outcome, Outcome::NotThrough { ref error, .. } if error == "offline: http 511"));
    }

    #[test]
    fn an_address_that_may_not_be_connected_to_is_no_refusal() {
        let outcome = classify(Err(NoResponse::NotAllowed("is link-local".into())));
        assert!(matches!(outcome, Outcome::Misconfigured { ref error } if error == "is link-local"));
    }

    #[test]
    fn a_failed_connection_is_offline() {
        let outcome = classify(Err(NoResponse::Offline("connection refused".into())));
        assert!(matches!(outcome, Outcome::NotThrough { ref error, .. } if error == "offline: connection refused"));
    }

    #[test]
    fn retry_after_is_passed_on() {
        let reply = Ok(Response { status: 503, retry_after: Some("7".into()), ..Response::default() });
        let Outcome::NotThrough { retry_after, .. } = classify(reply) else { panic!() };
        assert_eq!(retry_after, Some(Duration::from_secs(7)));
    }
}
