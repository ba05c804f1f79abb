//! The connection to one target: its HTTP thread, and the bell that the thread rings when a reply is there.

use crate::pg::latch::{self, Bell};
use delivery::Settings;
use delivery::http::{Http, Reply, Request};
use std::sync::Arc;

pub struct HttpLink {
    http: Http,
    /// What it was opened with.
    pub settings: Settings,
}

impl HttpLink {
    /// Starts the HTTP thread; the error says which file or setting is wrong.
    pub fn open(settings: &Settings, bell: &Arc<Bell>) -> Result<Self, String> {
        let bell = bell.clone();
        let http = latch::with_signals_blocked(|| Http::start(settings, move || bell.ring()))?;
        Ok(HttpLink { http, settings: settings.clone() })
    }

    pub fn send(&mut self, request: Request) {
        self.http.send(request);
    }

    /// The reply, if it is there.
    pub fn reply(&mut self) -> Option<Reply> {
        self.http.reply()
    }
}
