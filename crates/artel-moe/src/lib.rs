//! The mixture-of-experts layer: route, place, assign, experts, combine.
