//! The definition, in float64.

use super::Combine;
use crate::quant::Element;

/// Returns `[T, H]`.
pub fn combine<A: Element>(combine: &Combine<'_, A>, hidden_size: usize) -> Vec<f64> {
    let slots = &combine.slots;
    let tokens = slots.ids.len() / slots.top_k;
    let mut out = vec![0.0; tokens * hidden_size];
    if let Some(identity) = combine.identity {
        for (position, out) in out.iter_mut().enumerate() {
            let hidden_state = f64::from(identity.hidden_states[position].to_f32());
            *out = f64::from(identity.weights[position / hidden_size]) * hidden_state;
        }
    }
    for (pair, &expert) in slots.ids.iter().enumerate() {
        if !slots.locality.computes(expert) {
            continue;
        }
        let token = pair / slots.top_k;
        for column in 0..hidden_size {
            out[token * hidden_size + column] += f64::from(slots.weights.of(pair))
                * f64::from(combine.rows[pair * hidden_size + column].to_f32());
        }
    }
    out
}
