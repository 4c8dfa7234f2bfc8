//! Memory, instruction sets and devices under Artel; knows nothing of mixture of experts.
