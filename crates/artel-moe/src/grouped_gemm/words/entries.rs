//! Which kernel computes a product.

use artel_device::cuda::KernelSpec;

use super::aligned::cuda::word_aligned;
use super::cuda::{Product, WordForm};
use super::direct::cuda::word_direct;
use super::floats::{
    aligned::cuda::float_aligned, direct::cuda::float_direct, widened::cuda::float_widened,
};
use super::widened::cuda::word_widened;
use super::{WordCode, WordFormat};

/// The kernel of a product.
pub(super) fn entry(format: WordFormat, form: WordForm, product: Product) -> KernelSpec {
    if format.code == WordCode::Mxfp8 {
        return float_entry(form, product);
    }
    let direct = |operation, entry| {
        KernelSpec::new(operation, word_direct::__module_ast_self, "word_direct", entry)
    };
    let aligned = |operation, entry| {
        KernelSpec::new(operation, word_aligned::__module_ast_self, "word_aligned", entry)
    };
    let widened = |operation, entry| {
        KernelSpec::new(operation, word_widened::__module_ast_self, "word_widened", entry)
    };
    match (form, product) {
        (WordForm::Direct { .. }, Product::First) => {
            direct("grouped_gemm/direct_gate_up", "direct_first")
        }
        (WordForm::Direct { .. }, Product::Second) => {
            direct("grouped_gemm/direct_down", "direct_second")
        }
        (WordForm::Aligned, Product::First) => {
            aligned("grouped_gemm/aligned_gate_up", "aligned_first")
        }
        (WordForm::Aligned, Product::Second) => {
            aligned("grouped_gemm/aligned_down", "aligned_second")
        }
        (WordForm::Widened, Product::First) => {
            widened("grouped_gemm/prefill_gate_up", "widened_first")
        }
        (WordForm::Widened, Product::Second) => {
            widened("grouped_gemm/prefill_down", "widened_second")
        }
    }
}

/// The same of e4m3 numbers.
fn float_entry(form: WordForm, product: Product) -> KernelSpec {
    let is_first = product == Product::First;
    let first_or = |first, second| if is_first { first } else { second };
    match form {
        WordForm::Direct { .. } => KernelSpec::new(
            first_or("grouped_gemm/direct_gate_up", "grouped_gemm/direct_down"),
            float_direct::__module_ast_self,
            "float_direct",
            first_or("float_direct_first", "float_direct_second"),
        ),
        WordForm::Aligned => KernelSpec::new(
            first_or("grouped_gemm/aligned_gate_up", "grouped_gemm/aligned_down"),
            float_aligned::__module_ast_self,
            "float_aligned",
            first_or("float_aligned_first", "float_aligned_second"),
        ),
        WordForm::Widened => KernelSpec::new(
            first_or("grouped_gemm/prefill_gate_up", "grouped_gemm/prefill_down"),
            float_widened::__module_ast_self,
            "float_widened",
            first_or("float_widened_first", "float_widened_second"),
        ),
    }
}
