//! Requests, sampling loop and streaming text.
