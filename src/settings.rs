//! The settings (GUCs): private statics, one `init`, and typed accessors.
//!
//! Delivery settings are SIGHUP-only: whoever sets the URL gets the token and the data, so neither a session nor `ALTER
//! ROLE .. SET` may set it.

use crate::pg::guc;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::{CStr, CString};
use std::time::Duration;

type StringSetting = GucSetting<Option<CString>>;

static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static CAPTURE: GucSetting<bool> = GucSetting::<bool>::new(true);
static ALLOW_HTTP: GucSetting<bool> = GucSetting::<bool>::new(false);
static COMPRESSION: GucSetting<bool> = GucSetting::<bool>::new(false);
static TRUNCATE_WHEN_EMPTY: GucSetting<bool> = GucSetting::<bool>::new(true);
/// NULL by default and not an empty string, because it is read for every row.
static REASON: StringSetting = StringSetting::new(None);
static BASE_URL: StringSetting = StringSetting::new(Some(c""));
static UPLOAD_PATH: StringSetting = StringSetting::new(Some(c"/api/sync/upload_outbox"));
static UPLOAD_TOKEN: StringSetting = StringSetting::new(Some(c""));
static UPLOAD_TOKEN_FILE: StringSetting = StringSetting::new(Some(c""));
static CA_FILE: StringSetting = StringSetting::new(Some(c""));
static CLIENT_CERT_FILE: StringSetting = StringSetting::new(Some(c""));
static CLIENT_KEY_FILE: StringSetting = StringSetting::new(Some(c""));
static PROXY: StringSetting = StringSetting::new(Some(c""));
static ALLOWED_ADDRESSES: StringSetting = StringSetting::new(Some(c""));
static SIGNING_SECRET_FILE: StringSetting = StringSetting::new(Some(c""));
static BATCH_ROWS: GucSetting<i32> = GucSetting::<i32>::new(1000);
static BATCH_BYTES: GucSetting<i32> = GucSetting::<i32>::new(1024);
static INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static RETRY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static RETRY_MAX_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(300_000);
static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static REQUEST_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30_000);
static FLUSH_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);
static LOCK_WAIT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static MAX_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(10);
static HISTORY_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(30 * 24 * 60);
static APPLIED_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(30 * 24 * 60);
/// Less than a sender waits for the answer, so that the other changes of the request are applied in time.
static APPLY_LOCK_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(5_000);
/// Less than a sender waits by default, because after that nobody reads the answer.
static APPLY_STATEMENT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(25_000);
/// Off, because how many changes are too many depends on the site.
static BACKLOG_ROWS_WARNING: GucSetting<i32> = GucSetting::<i32>::new(0);
/// A tenth of a small disk, in MB.
static BACKLOG_SIZE_WARNING: GucSetting<i32> = GucSetting::<i32>::new(10 * 1024);
/// Longer than most connections are down.
static BACKLOG_AGE_WARNING: GucSetting<i32> = GucSetting::<i32>::new(24 * 3600);
static WORKER_IDLE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60_000);

const MINUTES_MAX: i32 = 100 * 365 * 24 * 60;

/// Registers every setting. Called once, from `_PG_init`.
pub fn init() {
    define_switches();
    define_texts();
    define_delivery_limits();
    define_hub_and_worker_limits();
    define_backlog_warnings();
    guc::reserve_prefix();
}

fn define_switches() {
    use GucContext::{Sighup, Suset};
    flag(c"sync_outbox.enabled", c"Sends captured changes automatically.", &ENABLED, Sighup);
    flag(c"sync_outbox.capture", c"Captures the writes of this session to attached tables.", &CAPTURE, Suset);
    flag(c"sync_outbox.allow_http", c"Allows plain http to hosts other than this one.", &ALLOW_HTTP, Sighup);
    flag(c"sync_outbox.compression", c"Sends request bodies compressed with gzip.", &COMPRESSION, Sighup);
    flag(
        c"sync_outbox.truncate_when_empty",
        c"Gives the disk space of a long backlog back once the outbox is empty.",
        &TRUNCATE_WHEN_EMPTY,
        Sighup,
    );
}

fn define_texts() {
    use GucContext::{Sighup, Userset};
    let none = GucFlags::empty();
    let secret = GucFlags::SUPERUSER_ONLY | GucFlags::NO_SHOW_ALL;
    let private = GucFlags::SUPERUSER_ONLY;
    text(c"sync_outbox.reason", c"Why this session writes; stored with every change it makes.", &REASON, Userset, none);
    text(c"sync_outbox.base_url", c"URL of the remote server, without the path.", &BASE_URL, Sighup, none);
    text(c"sync_outbox.upload_path", c"Path that changes are posted to.", &UPLOAD_PATH, Sighup, none);
    text(
        c"sync_outbox.upload_token",
        c"Upload token; sync_outbox.upload_token_file or sync_outbox_set_token() leak less.",
        &UPLOAD_TOKEN,
        Sighup,
        secret,
    );
    text(c"sync_outbox.upload_token_file", c"File with the upload token.", &UPLOAD_TOKEN_FILE, Sighup, private);
    text(c"sync_outbox.ca_file", c"PEM file of the authorities that may sign the server.", &CA_FILE, Sighup, private);
    text(c"sync_outbox.client_cert_file", c"PEM file of the client certificate.", &CLIENT_CERT_FILE, Sighup, private);
    text(c"sync_outbox.client_key_file", c"PEM file of the client key.", &CLIENT_KEY_FILE, Sighup, private);
    text(c"sync_outbox.proxy", c"URL of an HTTP proxy; none is taken from the environment.", &PROXY, Sighup, private);

    text(
        c"sync_outbox.allowed_addresses",
        c"Networks that may be connected to; empty: all but metadata and link-local addresses.",
        &ALLOWED_ADDRESSES,
        Sighup,
        none,
    );
    text(
        c"sync_outbox.signing_secret_file",
        c"File with the secrets that requests are signed with.",
        &SIGNING_SECRET_FILE,
        Sighup,
        private,
    );
}

fn define_delivery_limits() {
    let (none, ms) = (GucFlags::empty(), GucFlags::UNIT_MS);
    number(c"sync_outbox.batch_rows", c"Most changes in one request.", &BATCH_ROWS, (1, 100_000), none);
    number(
        c"sync_outbox.batch_bytes",
        c"Most bytes of changes in one request; a larger change travels alone.",
        &BATCH_BYTES,
        (1, 512 * 1024),
        GucFlags::UNIT_KB,
    );
    number(c"sync_outbox.interval", c"Longest time between two looks at the queue.", &INTERVAL, (100, 3_600_000), ms);
    number(
        c"sync_outbox.retry_interval",
        c"First wait after a failed request; it doubles with every further one.",
        &RETRY_INTERVAL,
        (10, 3_600_000),
        ms,
    );
    number(
        c"sync_outbox.retry_max_interval",
        c"Longest wait between two tries.",
        &RETRY_MAX_INTERVAL,
        (10, 86_400_000),
        ms,
    );
    number(c"sync_outbox.connect_timeout", c"Time to connect, TLS included.", &CONNECT_TIMEOUT, (10, 600_000), ms);
    number(c"sync_outbox.request_timeout", c"Time for one request.", &REQUEST_TIMEOUT, (10, 3_600_000), ms);
    number(
        c"sync_outbox.flush_timeout",
        c"Time sync_outbox_flush() may take; 0 is no limit.",
        &FLUSH_TIMEOUT,
        (0, i32::MAX),
        ms,
    );
    number(
        c"sync_outbox.lock_wait",
        c"Time sync_outbox_flush() waits for another sender.",
        &LOCK_WAIT,
        (0, i32::MAX),
        ms,
    );
    number(c"sync_outbox.max_attempts", c"Refusals after which a change is DEAD.", &MAX_ATTEMPTS, (1, 1_000_000), none);
}

fn define_hub_and_worker_limits() {
    let (ms, minutes) = (GucFlags::UNIT_MS, GucFlags::UNIT_MIN);
    number(
        c"sync_outbox.history_retention",
        c"Age at which rows of sync_outbox_history go.",
        &HISTORY_RETENTION,
        (1, MINUTES_MAX),
        minutes,
    );
    number(
        c"sync_outbox.applied_retention",
        c"Age at which a hub forgets the keys it has applied.",
        &APPLIED_RETENTION,
        (1, MINUTES_MAX),
        minutes,
    );
    number(
        c"sync_outbox.apply_lock_timeout",
        c"Time one call of sync_outbox_apply() waits for locks of others, in all; 0 is no limit.",
        &APPLY_LOCK_TIMEOUT,
        (0, i32::MAX),
        ms,
    );
    number(
        c"sync_outbox.apply_statement_timeout",
        c"Time one call of sync_outbox_apply() may take; 0 is no limit.",
        &APPLY_STATEMENT_TIMEOUT,
        (0, i32::MAX),
        ms,
    );
    number(
        c"sync_outbox.worker_idle_timeout",
        c"Idle time after which a database's worker leaves.",
        &WORKER_IDLE_TIMEOUT,
        (0, i32::MAX),
        ms,
    );
}

fn define_backlog_warnings() {
    number(
        c"sync_outbox.backlog_rows_warning",
        c"Changes in the outbox above which the log warns; 0 is never.",
        &BACKLOG_ROWS_WARNING,
        (0, i32::MAX),
        GucFlags::empty(),
    );
    number(
        c"sync_outbox.backlog_size_warning",
        c"Disk space of the outbox above which the log warns; 0 is never.",
        &BACKLOG_SIZE_WARNING,
        (0, i32::MAX),
        GucFlags::UNIT_MB,
    );
    number(
        c"sync_outbox.backlog_age_warning",
        c"Age of the oldest change in the outbox above which the log warns; 0 is never.",
        &BACKLOG_AGE_WARNING,
        (0, i32::MAX),
        GucFlags::UNIT_S,
    );
}

fn flag(name: &'static CStr, what: &'static CStr, setting: &'static GucSetting<bool>, context: GucContext) {
    GucRegistry::define_bool_guc(name, what, c"", setting, context, GucFlags::empty());
}

fn text(
    name: &'static CStr,
    what: &'static CStr,
    setting: &'static StringSetting,
    context: GucContext,
    flags: GucFlags,
) {
    GucRegistry::define_string_guc(name, what, c"", setting, context, flags);
}

fn number(
    name: &'static CStr,
    what: &'static CStr,
    setting: &'static GucSetting<i32>,
    (least, most): (i32, i32),
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(name, what, c"", setting, least, most, GucContext::Sighup, flags);
}

fn string(setting: &StringSetting) -> String {
    setting.get().map(|s| s.to_string_lossy().trim().to_owned()).unwrap_or_default()
}

fn path(setting: &StringSetting) -> Option<String> {
    Some(string(setting)).filter(|s| !s.is_empty())
}

fn millis(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get().max(0) as u64)
}

/// Whether this session's writes are captured.
pub fn capture() -> bool {
    CAPTURE.get()
}

/// Hands the session's reason to `f`, if it gave one, in the server encoding. It is not copied, because it can have any
/// length.
pub fn with_reason<R>(f: impl FnOnce(Option<&[u8]>) -> R) -> R {
    guc::with_text(&REASON, |text| f(text.map(<[u8]>::trim_ascii).filter(|reason| !reason.is_empty())))
}

pub fn enabled() -> bool {
    ENABLED.get()
}

pub fn truncate_when_empty() -> bool {
    TRUNCATE_WHEN_EMPTY.get()
}

pub fn base_url() -> Option<String> {
    path(&BASE_URL)
}

pub fn upload_path() -> String {
    string(&UPLOAD_PATH)
}

pub fn upload_token() -> Option<String> {
    path(&UPLOAD_TOKEN)
}

pub fn upload_token_file() -> Option<String> {
    path(&UPLOAD_TOKEN_FILE)
}

/// How often the worker polls, in case it was not woken.
pub fn interval() -> Duration {
    millis(&INTERVAL)
}

/// How long a flush may take; `None` is no limit.
pub fn flush_timeout() -> Option<Duration> {
    Some(millis(&FLUSH_TIMEOUT)).filter(|d| !d.is_zero())
}

pub fn lock_wait() -> Duration {
    millis(&LOCK_WAIT)
}

pub fn worker_idle_timeout() -> Duration {
    millis(&WORKER_IDLE_TIMEOUT)
}

pub fn history_retention() -> Duration {
    Duration::from_secs(60 * HISTORY_RETENTION.get() as u64)
}

pub fn applied_retention() -> Duration {
    Duration::from_secs(60 * APPLIED_RETENTION.get() as u64)
}

/// How long one call of apply waits for locks; `None` is no limit.
pub fn apply_lock_timeout() -> Option<Duration> {
    Some(millis(&APPLY_LOCK_TIMEOUT)).filter(|d| !d.is_zero())
}

/// How long one call of apply may take; `None` is no limit.
pub fn apply_statement_timeout() -> Option<Duration> {
    Some(millis(&APPLY_STATEMENT_TIMEOUT)).filter(|d| !d.is_zero())
}

/// The limits above which the log warns about the backlog; 0 means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    pub rows: i64,
    pub bytes: i64,
    pub age: Duration,
}

pub fn thresholds() -> Thresholds {
    Thresholds {
        rows: BACKLOG_ROWS_WARNING.get().into(),
        bytes: i64::from(BACKLOG_SIZE_WARNING.get()) << 20,
        age: Duration::from_secs(BACKLOG_AGE_WARNING.get().max(0) as u64),
    }
}

/// The settings that a push session uses.
pub fn delivery() -> delivery::Settings {
    delivery::Settings {
        batch_rows: BATCH_ROWS.get() as usize,
        batch_bytes: BATCH_BYTES.get() as usize * 1024,
        connect_timeout: millis(&CONNECT_TIMEOUT),
        request_timeout: millis(&REQUEST_TIMEOUT),
        retry_interval: millis(&RETRY_INTERVAL),
        retry_max_interval: millis(&RETRY_MAX_INTERVAL),
        max_attempts: MAX_ATTEMPTS.get(),
        compression: COMPRESSION.get(),
        allow_http: ALLOW_HTTP.get(),
        ca_file: path(&CA_FILE),
        client_cert_file: path(&CLIENT_CERT_FILE),
        client_key_file: path(&CLIENT_KEY_FILE),
        proxy: path(&PROXY),
        allowed_addresses: string(&ALLOWED_ADDRESSES),
        signing_secret_file: path(&SIGNING_SECRET_FILE),
        server_uid: crate::pg::file::server_uid(),
    }
}
