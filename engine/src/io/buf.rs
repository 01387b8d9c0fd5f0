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

use memmap2::MmapMut;

/// Alignment of every buffer, in bytes; no device is known that asks for more.
pub const ALIGNMENT: usize = 4096;

/// Buffers of so many bytes and more are pages of their own: zero without being written to, taken when
/// they are touched, and given back at once. The heap would do none of this.
const PAGES_FROM: usize = 1 << 20;

/// What holds a buffer's bytes.
enum Memory {
    /// The heap, with [`PageBuf::layout`].
    Heap,
    /// Fresh pages; dropped, they are given back.
    Pages(#[expect(dead_code, reason = "kept for its drop")] MmapMut),
}

/// An owned buffer, aligned to [`ALIGNMENT`], of which I/O sees a window.
pub struct PageBuf {
    start: NonNull<u8>,
    memory: Memory,
    capacity: usize,
    window: Range<usize>,
}

// SAFETY: the memory is owned by this value alone and holds plain bytes.
unsafe impl Send for PageBuf {}

impl PageBuf {
    /// A zeroed buffer of `capacity` bytes, rounded up to [`ALIGNMENT`]; the window is
    /// `0..capacity` as asked.
    ///
    /// # Panics
    /// If `capacity` is zero.
    pub fn zeroed(capacity: usize) -> Self {
        assert!(capacity > 0);
        let rounded = capacity.next_multiple_of(ALIGNMENT);
        let layout = Self::layout(rounded);
        let (start, memory) = if rounded >= PAGES_FROM {
            let Ok(mut pages) = MmapMut::map_anon(rounded) else { handle_alloc_error(layout) };
            (pages.as_mut_ptr(), Memory::Pages(pages))
        } else {
            // SAFETY: the layout's size is not zero.
            (unsafe { alloc_zeroed(layout) }, Memory::Heap)
        };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, memory, capacity: rounded, window: 0..capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGNMENT).expect("capacity fits an address space")
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
        unsafe { self.start.as_ptr().add(self.window.start) }
    }

    /// The window's first byte, for the kernel to write to.
    pub(crate) fn as_window_mut_ptr(&mut self) -> *mut u8 {
        // SAFETY: the window lies in the allocation.
        unsafe { self.start.as_ptr().add(self.window.start) }
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
        if let Memory::Heap = self.memory {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
        }
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
    fn a_large_buffer_is_like_a_small_one() {
        for bytes in [PAGES_FROM - ALIGNMENT, PAGES_FROM, 3 * PAGES_FROM + 1] {
            let mut buf = PageBuf::zeroed(bytes);
            assert_eq!(buf.as_window_ptr().align_offset(ALIGNMENT), 0);
            assert!(buf.iter().all(|byte| *byte == 0));
            buf.fill(7);
            buf.set_window(bytes - 1..buf.capacity());
            assert_eq!(buf.iter().map(|byte| u32::from(*byte)).sum::<u32>(), 7);
        }
    }

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
