//! A session's requests: sending the next one, taking its reply, and taking note of what came of all of them.

use super::Session;
use crate::push::exchange::Exchange;
use crate::push::http_link::HttpLink;
use crate::push::report::Stop;
use crate::push::settle;
use crate::push::transactions::{StepError, Transactions};
use crate::store::stats;
use delivery::http::NoResponse;

/// The worker counts at most so many changes when a target is found to be down: nobody waits for the figure.
const COUNTED_WHEN_DOWN: i64 = 10_000;

impl Session {
    /// Sends the next request of the exchange, if there is one.
    pub(super) fn send(&mut self) {
        let (Some(exchange), Some(destination)) = (&mut self.exchange, self.lookup.destination()) else { return };
        if self.link.is_none() {
            match HttpLink::open(&destination.settings, &self.bell) {
                Ok(link) => self.link = Some(link),
                Err(why) => {
                    exchange.abandon();
                    self.stop = Some(Stop::Unusable(settle::unusable(why)));
                    return;
                }
            }
        }
        let parked = self.fetcher.reader.parked();
        if let (Some(link), Some(request)) = (&mut self.link, exchange.next_request(destination, parked)) {
            link.send(request);
            self.fetcher.looked_ahead = false;
        }
    }

    /// Takes the reply, if it is there.
    pub(super) fn take_reply(&mut self) -> bool {
        let reply = match &mut self.link {
            Some(link) => link.reply(),
            None => Some(Err(NoResponse::Offline("the connection was closed".into()))),
        };
        let (Some(reply), Some(exchange)) = (reply, &mut self.exchange) else { return false };
        exchange.take(reply, self.fetcher.reader.parked());
        true
    }

    /// After a 401, 403 or 407: whether the request is to be sent again because token, secrets or URL have changed.
    /// Once per exchange.
    pub(super) fn has_other_credentials<T: Transactions>(&mut self, transactions: &mut T) -> Result<bool, StepError> {
        if self.renewed_credentials || !self.exchange.as_ref().is_some_and(Exchange::is_unauthorized) {
            return Ok(false);
        }
        let have_changed = self.lookup.renew_credentials(transactions, &self.schema, &self.name)?;
        self.renewed_credentials = true;
        if have_changed {
            self.exchange.iter_mut().for_each(Exchange::resume);
        }
        Ok(have_changed)
    }

    /// Takes note of every verdict of an exchange that is over.
    pub(super) fn note_results<T: Transactions>(&mut self, transactions: &mut T) -> Result<(), StepError> {
        let Session { schema, id, bounded, lookup, fetcher, exchange, results, .. } = self;
        let trouble = exchange.as_ref().is_some_and(Exchange::in_trouble);
        if trouble && !*bounded && results.failures == 0 {
            let pending = transactions.step(|| stats::pending(schema, *id, None, COUNTED_WHEN_DOWN))?;
            results.report.pending = results.report.acked + pending;
        }
        let (Some(exchange), Some(destination)) = (exchange.take(), lookup.destination()) else { return Ok(()) };
        let stop = results.note(exchange.end(), &destination.settings, &mut fetcher.reader);
        self.stop = stop.or(self.stop.take());
        Ok(())
    }
}
