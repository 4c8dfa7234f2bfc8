//! What the texts of the kernels share.
//!
//! A warp has 16 outputs and 128 inputs at a time: two matrix instructions of 16 x 32 numbers for each 64
//! inputs, of which a lane reads 16 bytes of a row at once. A product does not depend on the order of its
//! inputs, so the four inputs that an instruction wants of a lane are four that lie beside each other. The
//! row is in all eight columns of the other operand.
//!
//! (PTX ISA 8.4: `mma.m16n8k32` of e4m3, `griddepcontrol`, `redux`.)

use std::fmt::Write as _;

/// Outputs of a warp.
pub(super) const ROWS: usize = 16;
/// Inputs with a scale.
pub(super) const GROUP: usize = 128;

/// Which outputs and inputs the warps of a block have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Output features.
    pub(super) outputs: usize,
    /// Input features.
    pub(super) inputs: usize,
    /// Warps that have different inputs.
    pub(super) across: usize,
    /// Groups of inputs of a warp.
    pub(super) groups: usize,
    /// Warps that have different outputs.
    pub(super) down: usize,
    /// Tiles of outputs of a warp.
    pub(super) tiles: usize,
    /// Blocks beside each other; tiles of a warp lie so many times `down` tiles apart.
    pub(super) blocks: usize,
}

impl Cut {
    pub(super) fn warps(&self) -> usize {
        self.across * self.down
    }

    pub(super) fn threads(&self) -> usize {
        32 * self.warps()
    }

    /// Parts that are summed apart.
    pub(super) fn parts(&self) -> usize {
        self.inputs / GROUP / self.across / self.groups
    }

    /// Bytes of a block's sums, before codes.
    fn sums_bytes(&self) -> usize {
        self.tiles * self.warps() * ROWS * 4
    }

    /// Bytes of shared memory: sums, squares, codes.
    pub(super) fn shared_bytes(&self) -> usize {
        self.codes_at() + self.warps() * self.groups * GROUP
    }

    pub(super) fn squares_at(&self) -> usize {
        self.sums_bytes()
    }

    fn codes_at(&self) -> usize {
        self.squares_at() + 4 * self.warps().next_multiple_of(4)
    }
}

/// Begins the kernel: who one is.
pub(super) fn head(entry: &str, parameters: &str, cut: &Cut) -> String {
    format!(
        ".version 8.4
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 shared[];
.visible .entry {entry}_entry({parameters})
.reqntid {threads}, 1, 1
{{
.reg .b32 thread, lane, warp, row, quarter, inputs, group, tile, block, part, i, at, base, codes;
.reg .b64 address, offset, weights, scales;
.reg .pred p, q;
mov.u32 thread, %tid.x;
and.b32 lane, thread, 31;
shr.u32 warp, thread, 5;
shr.u32 row, lane, 2;
and.b32 quarter, lane, 3;
mov.u32 block, %ctaid.x;
mov.u32 part, %ctaid.y;
rem.u32 group, warp, {across};
div.u32 tile, warp, {across};
mad.lo.u32 group, part, {part_groups}, group;
mad.lo.u32 tile, block, {down}, tile;
mov.u32 base, shared;
mad.lo.u32 codes, warp, {code_bytes}, base;
add.u32 codes, codes, {codes_at};
",
        threads = cut.threads(),
        across = cut.across,
        part_groups = cut.across * cut.groups,
        down = cut.down,
        code_bytes = cut.groups * GROUP,
        codes_at = cut.codes_at(),
    )
}

/// Asks for all weights of the warp and their scales.
pub(super) fn weights(cut: &Cut) -> String {
    let Cut { inputs, outputs, across, groups, down, tiles, blocks, .. } = *cut;
    let mut text = String::from(
        "ld.param.u64 weights, [weights_pointer];
ld.param.u64 scales, [scales_pointer];
",
    );
    for tile in 0..tiles {
        let _ = writeln!(
            text,
            ".reg .b32 tile{tile};
.reg .pred live{tile};
add.u32 tile{tile}, tile, {};
setp.lt.u32 live{tile}, tile{tile}, {};
mad.lo.u32 i, tile{tile}, {ROWS}, row;
mul.wide.u32 address, i, {inputs};
mad.lo.u32 i, group, {GROUP}, 0;
mad.lo.u32 i, quarter, 16, i;
cvt.u64.u32 offset, i;
add.u64 address, address, offset;
add.u64 address, address, weights;",
            tile * blocks * down,
            outputs / ROWS,
        );
        for unit in 0..groups {
            for (n, half) in [0, 8 * inputs].into_iter().enumerate() {
                for window in 0..2 {
                    let name = format!("w{tile}_{unit}_{n}_{window}");
                    let at = half + unit * across * GROUP + window * 64;
                    let _ = writeln!(
                        text,
                        ".reg .b32 {name}_<4>;
mov.b32 {name}_0, 0;
mov.b32 {name}_1, 0;
mov.b32 {name}_2, 0;
mov.b32 {name}_3, 0;
@live{tile} ld.global.nc.L1::no_allocate.v4.b32 {{{name}_0, {name}_1, {name}_2, {name}_3}}, [address+{at}];"
                    );
                }
            }
            let _ = writeln!(
                text,
                ".reg .f32 scale{tile}_{unit};
mov.f32 scale{tile}_{unit}, 0f00000000;
shr.u32 i, tile{tile}, {};
mad.lo.u32 i, i, {}, group;
add.u32 i, i, {};
mul.wide.u32 offset, i, 4;
add.u64 offset, offset, scales;
@live{tile} ld.global.nc.f32 scale{tile}_{unit}, [offset];",
                (GROUP / ROWS).ilog2(),
                inputs / GROUP,
                unit * across,
            );
        }
    }
    text
}

/// Four values of a lane, `value{unit}_0` to `value{unit}_3`, to codes: `x{unit}_0` to `x{unit}_7` are those
/// that the lane multiplies, `scale_of{unit}` is their scale.
pub(super) fn to_codes(unit: usize) -> String {
    let at = unit * GROUP;
    let mut text = format!(
        ".reg .f32 scale_of{unit}, code{unit}_<4>, size{unit};
.reg .b32 bits{unit};
.reg .b16 low{unit}, high{unit};
.reg .b32 x{unit}_<8>;
abs.f32 scale_of{unit}, value{unit}_0;
"
    );
    for i in 1..4 {
        let _ = writeln!(
            text,
            "abs.f32 size{unit}, value{unit}_{i};
max.f32 scale_of{unit}, scale_of{unit}, size{unit};"
        );
    }
    let _ = write!(
        text,
        "mov.b32 bits{unit}, scale_of{unit};
redux.sync.max.u32 bits{unit}, bits{unit}, 0xffffffff;
mov.b32 scale_of{unit}, bits{unit};
div.rn.f32 scale_of{unit}, scale_of{unit}, 0f43E00000;
max.f32 scale_of{unit}, scale_of{unit}, least;
min.f32 scale_of{unit}, scale_of{unit}, most;
"
    );
    for i in 0..4 {
        let _ = writeln!(text, "div.rn.f32 code{unit}_{i}, value{unit}_{i}, scale_of{unit};");
    }
    let _ = write!(
        text,
        "cvt.rn.satfinite.e4m3x2.f32 low{unit}, code{unit}_1, code{unit}_0;
cvt.rn.satfinite.e4m3x2.f32 high{unit}, code{unit}_3, code{unit}_2;
mov.b32 bits{unit}, {{low{unit}, high{unit}}};
shl.b32 at, lane, 2;
add.u32 at, at, codes;
st.shared.b32 [at+{at}], bits{unit};
bar.warp.sync 0xffffffff;
shl.b32 at, quarter, 4;
add.u32 at, at, codes;
ld.shared.v4.b32 {{x{unit}_0, x{unit}_1, x{unit}_2, x{unit}_3}}, [at+{at}];
ld.shared.v4.b32 {{x{unit}_4, x{unit}_5, x{unit}_6, x{unit}_7}}, [at+{}];
",
        at + 64,
    );
    text
}

/// Multiplies, and leaves the sums of all warps in shared memory.
pub(super) fn multiply(cut: &Cut) -> String {
    let mut text = String::from(".reg .f32 factor;\n");
    for tile in 0..cut.tiles {
        let _ = writeln!(
            text,
            ".reg .f32 sum{tile}_<2>;
mov.f32 sum{tile}_0, 0f00000000;
mov.f32 sum{tile}_1, 0f00000000;"
        );
        for unit in 0..cut.groups {
            let product = format!("product{tile}_{unit}");
            let sums: Vec<String> = (0..4).map(|i| format!("{product}_{i}")).collect();
            let sums = sums.join(", ");
            let _ = writeln!(text, ".reg .f32 {product}_<4>;");
            for i in 0..4 {
                let _ = writeln!(text, "mov.f32 {product}_{i}, 0f00000000;");
            }
            for window in 0..2 {
                for word in [0, 2] {
                    let w =
                        |half: usize, word: usize| format!("w{tile}_{unit}_{half}_{window}_{word}");
                    let _ = writeln!(
                        text,
                        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {{{sums}}}, {{{}, {}, {}, {}}}, {{x{unit}_{}, x{unit}_{}}}, {{{sums}}};",
                        w(0, word),
                        w(1, word),
                        w(0, word + 1),
                        w(1, word + 1),
                        4 * window + word,
                        4 * window + word + 1,
                    );
                }
            }
            let _ = writeln!(
                text,
                "mul.rn.f32 factor, scale{tile}_{unit}, scale_of{unit};
fma.rn.f32 sum{tile}_0, {product}_0, factor, sum{tile}_0;
fma.rn.f32 sum{tile}_1, {product}_2, factor, sum{tile}_1;"
            );
        }
        let _ = writeln!(
            text,
            "setp.eq.u32 p, quarter, 0;
mad.lo.u32 at, warp, {}, row;
shl.b32 at, at, 2;
add.u32 at, at, base;
@p st.shared.f32 [at+{first}], sum{tile}_0;
@p st.shared.f32 [at+{second}], sum{tile}_1;",
            ROWS,
            first = tile * cut.warps() * ROWS * 4,
            second = tile * cut.warps() * ROWS * 4 + 32,
        );
    }
    text.push_str("bar.sync 0;\n");
    text
}

/// Adds the sums of warps with different inputs, a thread for an output. `store`: what becomes of `sum` of
/// output `i`.
pub(super) fn add(cut: &Cut, store: &str) -> String {
    let (outputs, warp_bytes) = (cut.down * ROWS, ROWS * 4);
    // Warp `d * across + a` has tile `d` of inputs `a`.
    let mut text = format!(
        ".reg .f32 sum, more<{across}>;
setp.ge.u32 p, thread, {all};
@p bra DONE;
shr.u32 i, thread, {rows_log};
mul.lo.u32 at, i, {down_bytes};
and.b32 i, thread, {mask};
shl.b32 i, i, 2;
add.u32 at, at, i;
add.u32 at, at, base;
div.u32 tile, thread, {outputs};
rem.u32 i, thread, {outputs};
mad.lo.u32 tile, tile, {blocks}, block;
mad.lo.u32 i, tile, {outputs}, i;
setp.ge.u32 p, i, {limit};
@p bra DONE;
",
        across = cut.across,
        all = cut.tiles * outputs,
        rows_log = ROWS.ilog2(),
        down_bytes = cut.across * warp_bytes,
        mask = ROWS - 1,
        blocks = cut.blocks,
        limit = cut.outputs,
    );
    for across in 0..cut.across {
        let _ = writeln!(text, "ld.shared.f32 more{across}, [at+{}];", across * warp_bytes);
    }
    text.push_str("mov.f32 sum, more0;\n");
    for across in 1..cut.across {
        let _ = writeln!(text, "add.rn.f32 sum, sum, more{across};");
    }
    let _ = writeln!(text, "{store}\nDONE: ret;\n}}");
    text
}

/// Four values to the nearest bfloat16.
pub(crate) fn round(unit: usize) -> String {
    format!(
        "cvt.rn.bf16x2.f32 pair0, value{unit}_1, value{unit}_0;
cvt.rn.bf16x2.f32 pair1, value{unit}_3, value{unit}_2;
shl.b32 whole, pair0, 16;
mov.b32 value{unit}_0, whole;
and.b32 whole, pair0, 0xffff0000;
mov.b32 value{unit}_1, whole;
shl.b32 whole, pair1, 16;
mov.b32 value{unit}_2, whole;
and.b32 whole, pair1, 0xffff0000;
mov.b32 value{unit}_3, whole;
"
    )
}
