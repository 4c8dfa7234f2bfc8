pub(in crate::grouped_gemm) mod cuda;
