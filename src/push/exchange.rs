//! Having one batch answered: requests, halving and bisecting, until every change has a verdict or the target is found
//! unreachable. Nothing here waits: it makes a request, the session sends it and hands back the reply.

use super::destination::Destination;
use delivery::batch::Batch;
use delivery::http::{Reply, Request};
use delivery::keys::Parked;
use delivery::outcome::{self, Failure, FailureKind, Outcome};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};
use wire::answer::{Answer, Verdict};
use wire::reason;

/// The target is suspected to be at fault after so many changes that were refused one by one by the status of the
/// response, while none was answered.
const SUSPECT_AFTER: usize = 10;

/// The verdict on a change of the batch, by its position.
pub struct Judged {
    pub change: usize,
    pub verdict: Verdict,
}

/// Why there is no verdict on the rest of a batch.
pub struct Trouble {
    pub failure: Failure,
    /// What went out and did not get through, or was refused with everything else.
    pub changes: Vec<usize>,
}

/// What came of a batch, or of some changes of it.
#[derive(Default)]
pub struct Answered {
    pub judged: Vec<Judged>,
    /// Changes that were not sent because an earlier one of their key was refused in this very batch.
    pub blocked: Vec<usize>,
    pub trouble: Option<Trouble>,
    /// The server has answered 413: less is to be read at a time from now on.
    pub too_large: bool,
}

/// What came of an exchange.
pub struct ExchangeResult {
    pub batch: Rc<Batch>,
    pub answered: Answered,
    /// Refusals by the status of a response, where the target gave no verdict on any change: then it may be the
    /// target's trouble, see [`super::suspicion`].
    pub refused_by_status: Vec<Judged>,
    /// What was picked and is still where it was.
    pub unsent: Vec<usize>,
    /// The target gave a verdict on a single change.
    pub got_verdicts: bool,
}

/// A batch on its way.
pub struct Exchange {
    pub batch: Rc<Batch>,
    /// What is still to be sent, the next part on top.
    parts: Vec<Vec<usize>>,
    /// The part that is out.
    out: Option<Vec<usize>>,
    answered: Answered,
    /// Alone in their requests, and refused by 400 or 422.
    refused_by_status: Vec<Judged>,
    /// What has not been sent stays where it is.
    abandoned: bool,
    /// The target has lately given a verdict on a change, between others that it refused: refusals are not its fault.
    has_recent_verdict: bool,
    /// The target gave verdicts on single changes.
    got_verdicts: bool,
}

impl Exchange {
    /// For the picked changes of a batch. What can never be sent has its verdict at once, and parks its keys.
    pub fn new(batch: Batch, picked: Vec<usize>, has_recent_verdict: bool, parked: &mut Parked) -> Self {
        let mut exchange = Exchange {
            batch: Rc::new(batch),
            parts: Vec::new(),
            out: None,
            answered: Answered::default(),
            refused_by_status: Vec::new(),
            abandoned: false,
            has_recent_verdict,
            got_verdicts: false,
        };
        let mut sendable = Vec::with_capacity(picked.len());
        for i in picked {
            match exchange.batch.changes[i].unsendable.clone() {
                Some(why) => exchange.give_up_on(i, why, parked),
                None => sendable.push(i),
            }
        }
        exchange.parts.push(sendable);
        exchange
    }

    /// The next request, if there is one; [`Exchange::take`] gets its reply.
    pub fn next_request(&mut self, destination: &Destination, parked: &mut Parked) -> Option<Request> {
        while let Some(part) = self.parts.pop() {
            let part = self.without_blocked(part, parked);
            if part.is_empty() {
                continue;
            }
            match self.batch.body(&part) {
                Some(body) => {
                    let request = request(&self.batch, &part, body, destination);
                    self.out = Some(part);
                    return Some(request);
                }
                None if part.len() == 1 => self.give_up_on(part[0], "not enough memory for its request".into(), parked),
                None => self.halve(part),
            }
        }
        None
    }

    /// Whether a request is out.
    pub fn is_out(&self) -> bool {
        self.out.is_some()
    }

    /// Whether nothing is out, and nothing more can be sent.
    pub fn is_over(&self) -> bool {
        self.out.is_none() && (self.parts.is_empty() || self.abandoned || self.answered.trouble.is_some())
    }

    /// Takes the reply to the request that is out.
    pub fn take(&mut self, reply: Reply, parked: &mut Parked) {
        let Some(part) = self.out.take() else { return };
        match outcome::classify(reply) {
            Outcome::Answered(answer) => self.take_answer(&part, &answer, parked),
            Outcome::TooLarge { error } if part.len() == 1 => {
                self.park(part[0], parked);
                self.answered.judged.push(Judged { change: part[0], verdict: Verdict::Refused(error) });
            }
            Outcome::Poison { error } if part.len() == 1 => {
                self.park(part[0], parked);
                self.refused_by_status.push(Judged { change: part[0], verdict: Verdict::Refused(error) });
                let suspect =
                    !self.got_verdicts && !self.has_recent_verdict && self.refused_by_status.len() >= SUSPECT_AFTER;
                self.abandoned |= suspect;
            }
            Outcome::TooLarge { .. } => {
                self.answered.too_large = true;
                self.halve(part)
            }
            Outcome::Poison { .. } => self.halve(part),
            Outcome::Failure(failure) => self.stop(failure, part),
        }
    }

    /// Sends after all what the failure has stopped: the credentials have changed.
    pub fn resume(&mut self) {
        self.answered.trouble = None;
    }

    pub fn is_unauthorized(&self) -> bool {
        self.answered.trouble.as_ref().is_some_and(|trouble| trouble.failure.kind == FailureKind::Unauthorized)
    }

    /// Leaves what has not been sent where it is.
    pub fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// What came of it.
    pub fn end(mut self) -> ExchangeResult {
        if self.got_verdicts {
            self.answered.judged.append(&mut self.refused_by_status);
        }
        ExchangeResult {
            batch: self.batch,
            answered: self.answered,
            refused_by_status: self.refused_by_status,
            unsent: self.parts.concat(),
            got_verdicts: self.got_verdicts,
        }
    }

    /// Whether the exchange ended in trouble, so that nothing more can be sent now.
    pub fn in_trouble(&self) -> bool {
        self.answered.trouble.is_some()
    }

    fn stop(&mut self, failure: Failure, part: Vec<usize>) {
        let through = !matches!(failure.kind, FailureKind::NotThrough { .. });
        let changes = if through { Vec::new() } else { part.clone() };
        self.answered.trouble = Some(Trouble { failure, changes });
        self.parts.push(part); // should it be resumed
    }

    /// Two halves on the stack, the earlier one on top: order holds.
    fn halve(&mut self, mut part: Vec<usize>) {
        let later = part.split_off(part.len() / 2);
        self.parts.push(later);
        self.parts.push(part);
    }

    fn without_blocked(&mut self, part: Vec<usize>, parked: &mut Parked) -> Vec<usize> {
        if parked.is_empty() {
            return part;
        }
        let Exchange { batch, answered, .. } = self;
        part.into_iter()
            .filter(|i| {
                let change = &batch.changes[*i];
                let touched = batch.touched(change);
                let waits = parked.blocks(&touched, change.id);
                if waits {
                    parked.park(&touched, change.id);
                    answered.blocked.push(*i);
                }
                !waits
            })
            .collect()
    }

    fn take_answer(&mut self, part: &[usize], answer: &Answer, parked: &mut Parked) {
        self.got_verdicts = true;
        for (change, verdict) in part.iter().zip(outcome::verdicts(&self.batch, part, answer)) {
            if verdict != Verdict::Acked {
                self.park(*change, parked);
            }
            self.answered.judged.push(Judged { change: *change, verdict });
        }
    }

    fn give_up_on(&mut self, change: usize, why: String, parked: &mut Parked) {
        self.park(change, parked);
        self.answered.judged.push(Judged { change, verdict: Verdict::Unsendable(why) });
    }

    fn park(&self, change: usize, parked: &mut Parked) {
        let change = &self.batch.changes[change];
        parked.park(&self.batch.touched(change), change.id);
    }
}

fn request(batch: &Batch, part: &[usize], body: Vec<u8>, destination: &Destination) -> Request {
    let Destination { endpoint, token, signing, .. } = destination;
    let id = batch.idempotency_key(part);
    let mut headers = vec![("Authorization", format!("Bearer {token}")), ("X-Upload-Token", token.to_owned())];
    if let Some(secrets) = signing {
        // A clock before 1970 is as wrong as one that is a day late: the receiver refuses both.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        headers.push(("webhook-id", id.clone()));
        headers.push(("webhook-timestamp", now.to_string()));
        headers.push(("webhook-signature", secrets.sign(&id, now, &body)));
    }
    headers.push(("Idempotency-Key", id));
    if let Some(reason) = batch.shared_reason(part).and_then(reason::header) {
        headers.push(("X-Reason", reason));
    }
    Request { url: endpoint.url.clone(), headers, body, changes: part.len() }
}
