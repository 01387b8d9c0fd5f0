//! Aligned buffers, owned by whoever holds them.
//!
//! Direct I/O needs memory aligned to the device's block. A [`PageBuf`] is moved into an I/O and
//! comes back with its result, so no one can touch it while the kernel does. It shows a *window*
//! of its memory: I/O transfers the window, and loops over short transfers move its start.

#![expect(unsafe_code, reason = "aligned allocation")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

/// Alignment of every buffer, in bytes; no device is known that asks for more.
pub const ALIGNMENT: usize = 4096;

/// An owned buffer, aligned to [`ALIGNMENT`], of which I/O sees a window.
pub struct PageBuf {
    /// As it was allocated; the buffer begins at the first aligned byte.
    allocated: NonNull<u8>,
    memory: NonNull<u8>,
    capacity: usize,
    window: Range<usize>,
}

// SAFETY: the memory is owned by this value alone and holds plain bytes.
unsafe impl Send for PageBuf {}

impl PageBuf {
    /// A zeroed buffer of `capacity` bytes, rounded up to [`ALIGNMENT`]; the window is
    /// `0..capacity` as asked. A large one costs no memory where it is not touched.
    ///
    /// # Panics
    /// If `capacity` is zero.
    pub fn zeroed(capacity: usize) -> Self {
        assert!(capacity > 0);
        let rounded = capacity.next_multiple_of(ALIGNMENT);
        let layout = Self::layout(rounded);
        // SAFETY: the layout's size is not zero.
        let allocated = unsafe { alloc_zeroed(layout) };
        let Some(allocated) = NonNull::new(allocated) else { handle_alloc_error(layout) };
        let offset = allocated.align_offset(ALIGNMENT);
        // SAFETY: the offset is less than `ALIGNMENT`, by which the layout is larger than the buffer.
        let memory = unsafe { allocated.add(offset) };
        Self { allocated, memory, capacity: rounded, window: 0..capacity }
    }

    /// Without an alignment of its own: the system's allocator would write over an aligned one to make it
    /// zero, where fresh pages are zero already.
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity + ALIGNMENT, 1).expect("capacity fits an address space")
    }

    /// Bytes of memory, window or not.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What I/O and dereferencing see.
    pub fn window(&self) -> Range<usize> {
        self.window.clone()
    }

    /// Moves the window. Contents stay.
    ///
    /// # Panics
    /// If it does not lie in the buffer's memory.
    pub fn set_window(&mut self, window: Range<usize>) {
        assert!(window.start <= window.end);
        assert!(window.end <= self.capacity);
        self.window = window;
    }

    /// The window's first byte, for the kernel.
    pub(crate) fn as_window_ptr(&self) -> *const u8 {
        // SAFETY: the window lies in the allocation.
        unsafe { self.memory.as_ptr().add(self.window.start) }
    }

    /// The window's first byte, for the kernel to write to.
    pub(crate) fn as_window_mut_ptr(&mut self) -> *mut u8 {
        // SAFETY: the window lies in the allocation.
        unsafe { self.memory.as_ptr().add(self.window.start) }
    }
}

impl Deref for PageBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the window lies in the allocation, all of which was initialised to zero.
        unsafe { std::slice::from_raw_parts(self.as_window_ptr(), self.window.len()) }
    }
}

impl DerefMut for PageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.as_window_mut_ptr(), self.window.len()) }
    }
}

impl Drop for PageBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.allocated.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl fmt::Debug for PageBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageBuf({:?} of {} bytes)", self.window, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_what_is_seen() {
        let mut buf = PageBuf::zeroed(5000);
        assert_eq!((buf.len(), buf.capacity()), (5000, 8192));
        assert_eq!(buf.as_window_ptr().align_offset(ALIGNMENT), 0);
        buf.fill(7);
        buf.set_window(4999..5002);
        assert_eq!(&buf[..], &[7, 0, 0]);
    }
}
