//! Scratch memory that kernels like: aligned to a cache line, grown once and then reused.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{Pod, Zeroable};

/// One cache line, the unit of allocation.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Line([u64; 8]);

// SAFETY: 64 bytes of integers without padding; the size equals the alignment.
unsafe impl Zeroable for Line {}
// SAFETY: as above; every bit pattern is a value.
unsafe impl Pod for Line {}

/// Numbers of any plain type at a 64-byte boundary. Never shrinks, so that a step which has run
/// once allocates nothing when it runs again.
#[derive(Debug, Clone, Default)]
pub struct AlignedBuffer {
    lines: Vec<Line>,
}

impl AlignedBuffer {
    /// The first `count` numbers, after growing when there are fewer. Old contents stay; what is
    /// new is zero.
    pub fn first_mut<T: Pod>(&mut self, count: usize) -> &mut [T] {
        let lines = (count * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 8]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..count]
    }

    /// The first `count` numbers.
    ///
    /// # Panics
    /// When the buffer was never grown to `count`, which is a bug.
    pub fn first<T: Pod>(&self, count: usize) -> &[T] {
        let all = bytemuck::cast_slice(&self.lines);
        assert!(count <= all.len(), "this is a bug: {count} numbers read of {}", all.len());
        &all[..count]
    }
}

/// The system's allocator, counting: a test that declares it `#[global_allocator]` sees whether a
/// step allocates.
#[derive(Debug, Default)]
pub struct CountingAllocator {
    allocations: AtomicUsize,
}

impl CountingAllocator {
    /// A counter at zero.
    pub const fn new() -> Self {
        Self { allocations: AtomicUsize::new(0) }
    }

    /// Allocations and reallocations of all threads so far.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Ordering::SeqCst)
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.allocations.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.allocations.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_keeps_and_aligns() {
        let mut buffer = AlignedBuffer::default();
        buffer.first_mut::<f32>(3).copy_from_slice(&[1.0, 2.0, 3.0]);
        let grown = buffer.first_mut::<f32>(1000);
        assert_eq!(grown[..4], [1.0, 2.0, 3.0, 0.0]);
        assert!(grown.as_ptr().addr().is_multiple_of(64));
        assert_eq!(buffer.first::<f32>(2), [1.0, 2.0]);
        assert!(AlignedBuffer::default().first::<u16>(0).is_empty());
    }
}
