//! Buffers whose size depends on stored values. They are in PostgreSQL's memory, where an allocation that fails is an
//! ERROR. A Rust allocation that fails ends the process, and with it every session of the server.

use super::externs;
use super::text::Varlena;
use crate::error::{Error, SqlState};
use pgrx::pg_sys::{self, Datum};
use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// The greatest size of a datum, its header included (`MaxAllocSize`).
const MOST: usize = 0x3fff_ffff;
/// The size that is kept from one row to the next. Rows that need more allocate it anew, which is cheap compared to
/// their other costs.
const KEPT: usize = 64 * 1024;

/// A growing array of bytes. Growing raises 53200 if there is no memory, and 54000 above [`MOST`].
pub struct Buffer {
    data: *mut u8,
    length: usize,
    room: usize,
}

thread_local! {
    static CONTEXT: Cell<pg_sys::MemoryContext> = const { Cell::new(core::ptr::null_mut()) };
}

/// The memory context of all buffers: it lives as long as the backend, because a buffer is used for many rows.
fn context() -> pg_sys::MemoryContext {
    if CONTEXT.get().is_null() {
        // SAFETY: on the main thread of a backend; the name is static.
        CONTEXT.set(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"sync_outbox buffers".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        });
    }
    CONTEXT.get()
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer { data: core::ptr::null_mut(), length: 0, room: 0 }
    }
}

impl Buffer {
    pub fn clear(&mut self) {
        self.length = 0;
    }

    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    #[inline]
    pub fn push(&mut self, byte: u8) {
        self.reserve(1);
        // SAFETY: there is room for it.
        unsafe { self.data.add(self.length).write(byte) };
        self.length += 1;
    }

    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        // SAFETY: there is room for them, and nobody else has a reference into the buffer.
        unsafe { self.data.add(self.length).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.length += bytes.len();
    }

    /// Puts a byte in front of the one at `at`.
    pub fn insert(&mut self, at: usize, byte: u8) {
        self.push(byte);
        self[at..].rotate_right(1);
    }

    #[inline]
    pub fn reserve(&mut self, more: usize) {
        if more > self.room - self.length {
            self.grow(more);
        }
    }

    #[cold]
    fn grow(&mut self, more: usize) {
        let Some(needed) = self.length.checked_add(more).filter(|needed| *needed <= MOST) else { too_large() };
        let room = needed.max(self.room + self.room / 2).clamp(1024, MOST);
        // SAFETY: the buffer was allocated in the same way; it stays as it is if there is no memory.
        self.data = unsafe {
            if self.data.is_null() {
                pg_sys::MemoryContextAlloc(context(), room)
            } else {
                pg_sys::repalloc(self.data.cast(), room)
            }
        }
        .cast();
        self.room = room;
    }

    /// Frees the memory of a large value; called when it has been used.
    #[inline]
    pub fn shrink(&mut self) {
        if self.room > KEPT {
            *self = Buffer::default();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.data.is_null() {
            // SAFETY: allocated in `grow`. It raises nothing and needs no transaction, so that it is right while an
            // error unwinds too.
            unsafe { externs::pfree(self.data.cast()) }
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.data.is_null() {
            return &[];
        }
        // SAFETY: so many bytes have been written.
        unsafe { core::slice::from_raw_parts(self.data, self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        if self.data.is_null() {
            return &mut [];
        }
        // SAFETY: as above, and self is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.data, self.length) }
    }
}

/// A growing varlena: four bytes of header, then the content. Handed to PostgreSQL without a copy.
#[derive(Default)]
pub struct VarlenaBuffer(Buffer);

impl VarlenaBuffer {
    pub fn clear(&mut self) -> &mut Buffer {
        self.0.clear();
        self.0.extend_from_slice(&[0; 4]);
        &mut self.0
    }

    /// The varlena; the buffer stays as it is as long as that lives.
    pub fn datum(&mut self) -> Varlena<'_> {
        if self.0.length < 4 {
            self.clear();
        }
        // SAFETY: the buffer holds the header's four bytes, aligned by palloc, and is not longer than a datum can be.
        unsafe {
            pgrx::set_varsize_4b(self.0.data.cast(), self.0.length as i32);
            Varlena::new(Datum::from(self.0.data))
        }
    }

    /// As [`Buffer::shrink`].
    #[inline]
    pub fn shrink(&mut self) {
        self.0.shrink();
    }
}

/// 54000 if these values do not fit into one row together.
pub fn check_row<const N: usize>(values: [Option<Varlena<'_>>; N]) {
    if values.into_iter().flatten().map(Varlena::size).sum::<usize>() > MOST - OTHERS {
        too_large();
    }
}

/// Room for a row's header and for its values that are never large.
const OTHERS: usize = 64 * 1024;

#[cold]
fn too_large() -> ! {
    Error::new(SqlState::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "a captured change does not fit into 1 GB")
        .detail("It is written as JSON, which is longer than the row's values where they have to be escaped.")
        .hint("Leave the column out: SELECT sync_outbox_attach(.., exclude => '{column}');")
        .raise()
}
