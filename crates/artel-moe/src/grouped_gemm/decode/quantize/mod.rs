pub(super) mod cuda;
