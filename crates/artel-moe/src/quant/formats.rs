//! The table of number formats. Adding one is a file in this folder, its kernels and a line here:
//! everything that has a variant for each format is made from the table.

/// Hands the table to a macro: `for_each_format!(name(arguments))` runs `name!` on the arguments in
/// parentheses and on a line `/// doc` `Format` `field` for each format. `Format` is the type and the
/// variant of every enum, `field` a name for what exists once per format.
macro_rules! for_each_format {
    ($($then:ident)::+ ($($arguments:tt)*)) => {
        $($then)::+! { ($($arguments)*)
            /// float32.
            F32 f32
            /// IEEE half precision.
            F16 f16
            /// bfloat16.
            Bf16 bf16
            /// FP8 e4m3 with a float32 scale per 128x128 block.
            Fp8Block128 fp8_block128
            /// FP8 e4m3 with a float32 scale per matrix.
            Fp8Tensor fp8_tensor
            /// FP8 e4m3 with a float32 scale per row.
            Fp8Channel fp8_channel
            /// INT8 with a float32 scale per row, and INT8 activations.
            Int8W8A8 int8_w8a8
            /// INT8 with a float32 scale per group of a row.
            Int8W8A16 int8_w8a16
            /// INT4 with a float32 scale per group of a row.
            Int4W4A16 int4_w4a16
            /// FP4 e2m1 with an e4m3 scale per 16 of a row and a float32 scale per matrix.
            Nvfp4 nvfp4
            /// FP4 e2m1 with a power of two per 32 of a row.
            Mxfp4 mxfp4
            /// FP8 e4m3 with a power of two per 32 of a row.
            Mxfp8 mxfp8
        }
    };
}

/// Runs the same expression on what an enum over the formats holds, of whichever format:
/// `each_format!(AnyMatrix, self, |matrix| matrix.rows())`. `|matrix: F|` calls the format `F`.
macro_rules! each_format {
    ($Any:ident, $value:expr, |$inner:ident| $run:expr) => {
        each_format!($Any, $value, |$inner: _UnusedFormat| $run)
    };
    ($Any:ident, $value:expr, |$inner:ident: $F:ident| $run:expr) => {
        $crate::quant::for_each_format! {
            $crate::quant::match_format($Any, $value, $inner, $F, $run)
        }
    };
}

/// As [`each_format`] for an expression that makes what another enum, or the same, holds:
/// `map_format!(AnyMatrix => AnyMatrix, self, |matrix| matrix.cut_rows(rows)?)`.
macro_rules! map_format {
    ($Any:ident => $Other:ident, $value:expr, |$inner:ident| $run:expr) => {
        $crate::quant::for_each_format! {
            $crate::quant::match_and_wrap_format($Any, $Other, $value, $inner, $run)
        }
    };
}

/// The `match` of [`each_format`].
macro_rules! match_format {
    (
        ($Any:ident, $value:expr, $inner:ident, $F:ident, $run:expr)
        $($(#[doc = $doc:literal])* $Format:ident $field:ident)*
    ) => {
        match $value {
            $($Any::$Format($inner) => {
                #[allow(dead_code)]
                type $F = $crate::quant::$Format;
                $run
            })*
        }
    };
}

/// The `match` of [`map_format`].
macro_rules! match_and_wrap_format {
    (
        ($Any:ident, $Other:ident, $value:expr, $inner:ident, $run:expr)
        $($(#[doc = $doc:literal])* $Format:ident $field:ident)*
    ) => {
        match $value {
            $($Any::$Format($inner) => $Other::$Format($run),)*
        }
    };
}

pub(crate) use {each_format, for_each_format, map_format, match_and_wrap_format, match_format};
