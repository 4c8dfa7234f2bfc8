//! The arguments of one launch, laid out as kernels expect them.

use bytemuck::Pod;

use super::{CudaError, DeviceSlice, DeviceSliceMut, TensorMap};

/// Most words that one kernel takes; a matrix takes five, anything but a tensor one.
const WORDS_MAX: usize = 64;

/// Arguments of one launch, in the order of the kernel's parameters.
///
/// A slice becomes a pointer. A tensor becomes a pointer, its dimensions and its strides in
/// elements (32-bit each). Everything is kept by value, so nothing is allocated.
#[derive(Debug, Clone, Copy)]
pub struct Arguments {
    words: [u64; WORDS_MAX],
    /// Which words are pointers.
    pointers: u64,
    /// Which words begin a parameter.
    beginnings: u64,
    count: usize,
}

impl Default for Arguments {
    fn default() -> Self {
        Self::new()
    }
}

impl Arguments {
    /// No arguments yet.
    pub fn new() -> Self {
        Self { words: [0; WORDS_MAX], pointers: 0, beginnings: 0, count: 0 }
    }

    /// A pointer to elements that are read.
    pub fn slice<T: Pod>(self, slice: DeviceSlice<'_, T>) -> Self {
        self.pointer(slice.address())
    }

    /// A pointer to elements that are written.
    pub fn slice_mut<T: Pod>(self, slice: &DeviceSliceMut<'_, T>) -> Self {
        self.pointer(slice.address())
    }

    /// A pointer that the kernel does not follow on this launch.
    pub fn no_slice(self) -> Self {
        self.pointer(0)
    }

    /// A row-major tensor without gaps that is read; `dims` outermost first.
    pub fn tensor<T: Pod>(self, slice: DeviceSlice<'_, T>, dims: &[usize]) -> Self {
        self.pointer(slice.address()).shape(dims)
    }

    /// A row-major tensor without gaps that is written; `dims` outermost first.
    pub fn tensor_mut<T: Pod>(self, slice: &DeviceSliceMut<'_, T>, dims: &[usize]) -> Self {
        self.pointer(slice.address()).shape(dims)
    }

    /// A 32-bit integer.
    pub fn i32(self, value: i32) -> Self {
        self.word(u64::from(value as u32))
    }

    /// A size or count, which must fit 31 bits.
    pub fn size(self, value: usize) -> Self {
        self.i32(i32::try_from(value).expect("this is a bug: a size beyond 31 bits was launched"))
    }

    /// A 32-bit float.
    pub fn f32(self, value: f32) -> Self {
        self.word(u64::from(value.to_bits()))
    }

    /// A tensor that the copy engine moves.
    pub fn tensor_map(self, map: &TensorMap) -> Self {
        let beginning = self.count;
        let mut arguments = map.words.iter().fold(self, |arguments, &word| arguments.word(word));
        arguments.beginnings &= (1 << (beginning + 1)) - 1;
        arguments
    }

    fn shape(self, dims: &[usize]) -> Self {
        let sized = dims.iter().fold(self, |arguments, &dim| arguments.size(dim));
        let strides = (1..=dims.len()).map(|axis| dims[axis..].iter().product::<usize>());
        strides.fold(sized, |arguments, stride| arguments.size(stride))
    }

    fn pointer(mut self, address: u64) -> Self {
        self.pointers |= 1 << self.count;
        self.word(address)
    }

    fn word(mut self, word: u64) -> Self {
        assert!(self.count < WORDS_MAX, "this is a bug: more than {WORDS_MAX} words of arguments");
        self.words[self.count] = word;
        self.beginnings |= 1 << self.count;
        self.count += 1;
        self
    }

    /// Every pointer is what kernels were promised.
    pub(super) fn check_alignment(&self, kernel: &str) -> Result<(), CudaError> {
        for (index, &address) in self.words[..self.count].iter().enumerate() {
            if self.pointers >> index & 1 == 1 && address % 16 != 0 {
                return Err(CudaError::Alignment { kernel: kernel.to_owned(), index, address });
            }
        }
        Ok(())
    }

    /// Addresses of the parameters, as the driver wants them.
    pub(super) fn addresses(&mut self) -> ([*mut std::ffi::c_void; WORDS_MAX], usize) {
        let mut addresses = [std::ptr::null_mut(); WORDS_MAX];
        let beginnings = self.beginnings;
        let words = self.words[..self.count].iter_mut().enumerate();
        let parameters = words.filter(|(index, _)| beginnings >> index & 1 == 1);
        for (address, (_, word)) in addresses.iter_mut().zip(parameters) {
            *address = std::ptr::from_mut(word).cast();
        }
        (addresses, beginnings.count_ones() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_map_is_one_parameter() {
        let map = TensorMap { words: [7; 16] };
        let mut arguments = Arguments::new().i32(1).tensor_map(&map).tensor_map(&map).i32(2);
        let first = arguments.words.as_ptr() as usize;
        let (addresses, count) = arguments.addresses();
        let words = addresses[..count].iter().map(|&address| (address as usize - first) / 8);
        assert_eq!(words.collect::<Vec<_>>(), [0, 1, 17, 33]);
    }
}
