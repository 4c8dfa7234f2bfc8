//! The cases: launches that read and write memory of the host are unsafe.

use artel_device::cuda::PinnedBuffer;
use artel_gpu_test::{Case, Gpu};
use artel_layers::LayersError;
use artel_layers::exchange::cuda::{Exchange, Pieces};
use artel_layers::exchange::{Piece, reference};

const WORDS: [usize; 2] = [4000, 1030];

fn pinned(gpu: &Gpu, words: &[i32]) -> Result<PinnedBuffer<i32>, LayersError> {
    let mut buffer = PinnedBuffer::zeroed(gpu.stream.context(), words.len())?;
    buffer.as_mut_slice().copy_from_slice(words);
    Ok(buffer)
}

fn bring(gpu: &Gpu, kernels: &Exchange) -> Result<(), LayersError> {
    let lists: [&[[usize; 3]]; 5] = [
        &[],
        &[[0, 0, 0], [1, 3, 1]],
        &[[0, 1, 512], [0, 513, 1], [1, 0, 513]],
        &[[1, 517, 513], [0, 3999, 1], [0, 0, 2]],
        &[[0, 0, 4000], [1, 0, 1030]],
    ];
    let host = WORDS.map(|count| (0..count as i32).map(|word| word * 7 - 3).collect::<Vec<_>>());
    let from = [pinned(gpu, &host[0])?, pinned(gpu, &host[1])?];
    let mut pieces = Pieces::new(gpu.stream.context(), 3)?;
    for list in lists {
        let list: Vec<Piece> =
            list.iter().map(|&[buffer, start, len]| Piece { buffer, start, len }).collect();
        pieces.set(list.iter().copied())?;
        let mut to = WORDS.map(|count| gpu.poisoned::<i32>(count));
        let [first, second] = &mut to;
        let targets = [&mut first.slice_mut(), &mut second.slice_mut()];
        // SAFETY: the downloads below wait for the launch.
        unsafe { kernels.bring(&gpu.stream, &pieces, [&from[0], &from[1]], targets) }?;
        let mut wanted = WORDS.map(|count| vec![-1; count]);
        let [first, second] = &mut wanted;
        reference::bring(&list, [&host[0], &host[1]], [first, second]);
        for (found, wanted) in to.iter().zip(&wanted) {
            assert_eq!(&gpu.download(found), wanted, "{list:?}");
        }
    }
    let beyond = Piece { buffer: 1, start: 1000, len: 31 };
    pieces.set([beyond])?;
    let mut to = WORDS.map(|count| gpu.poisoned::<i32>(count));
    let [first, second] = &mut to;
    let targets = [&mut first.slice_mut(), &mut second.slice_mut()];
    // SAFETY: nothing is launched.
    let result = unsafe { kernels.bring(&gpu.stream, &pieces, [&from[0], &from[1]], targets) };
    assert!(result.is_err(), "a piece beyond its buffer");
    assert!(pieces.set([beyond; 4]).is_err(), "more pieces than there is room for");
    Ok(())
}

fn tell(gpu: &Gpu, kernels: &Exchange) -> Result<(), LayersError> {
    for rows in [1, 64, 256, 257] {
        let tokens: Vec<i32> = (0..rows as i32).map(|row| row * 5 - 1).collect();
        let logprobs: Vec<f32> = (0..rows).map(|row| -0.25 * row as f32).collect();
        let of_device = (gpu.upload(&tokens), gpu.upload(&logprobs));
        let context = gpu.stream.context();
        let mut told = PinnedBuffer::zeroed(context, rows + 3)?;
        let mut probabilities = PinnedBuffer::zeroed(context, rows)?;
        let chosen = (of_device.0.slice(), of_device.1.slice());
        // SAFETY: the stream is waited for below.
        unsafe { kernels.tell(&gpu.stream, chosen, (&mut told, &mut probabilities)) }?;
        gpu.stream.synchronize()?;
        assert_eq!(told.as_slice()[..rows], tokens);
        assert_eq!(told.as_slice()[rows..], [0; 3]);
        assert_eq!(probabilities.as_slice(), logprobs);
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("exchange::bring", Exchange::load, bring),
        Case::new("exchange::tell", Exchange::load, tell),
    ]
}
