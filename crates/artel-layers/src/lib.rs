//! The rest of a decoder block: attention, norms, rotary embedding, linear, sampling.
