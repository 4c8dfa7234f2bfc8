//! Checkpoints in the layouts of quantisation tools, packed here one number at a time, against twins
//! with the numbers that the codes stand for.

use artel_model::checkpoint::Dtype;
use artel_moe::quant::{e2m1_to_f32, e4m3_to_f32, e8m0_to_f32};
use half::f16;
use serde_json::{Value, json};

use crate::support::{Edited, Fixture, logits, relative_difference};

/// Tensors of one linear map by their endings.
type Tensors = Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>;

/// A layout: given an index that differs from map to map and `[rows, columns]`, what is stored and
/// what it stands for.
type Layout = fn(usize, [usize; 2]) -> (Tensors, Vec<f32>);

/// Some code below `limit` for a number of a map.
fn code(map: usize, index: usize, limit: usize) -> usize {
    (index * 7919 + index / 13 + map * 31) % limit
}

fn bytes_of<T: bytemuck::NoUninit>(numbers: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(numbers).to_vec()
}

/// A scale that half precision holds.
fn scale(map: usize, index: usize) -> f32 {
    f16::from_f32(0.002 + 0.0005 * code(map, index, 5) as f32).to_f32()
}

/// The numbers `[rows, columns]` of a function of row and column.
fn numbers([rows, columns]: [usize; 2], number: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..rows * columns).map(|index| number(index / columns, index % columns)).collect()
}

const GROUP: usize = 16;

fn groups(columns: usize) -> usize {
    columns.div_ceil(GROUP)
}

fn gptq(map: usize, [rows, columns]: [usize; 2]) -> (Tensors, Vec<f32>) {
    let q = |n: usize, k: usize| code(map, n * columns + k, 16);
    let zero = |n: usize, g: usize| 1 + code(map, n * 5 + g, 15);
    let scale = |n: usize, g: usize| scale(map, n * 3 + g);
    let mut qweight = vec![0u32; columns / 8 * rows];
    let mut qzeros = vec![0u32; groups(columns) * rows / 8];
    for (n, k) in (0..rows).flat_map(|n| (0..columns).map(move |k| (n, k))) {
        qweight[k / 8 * rows + n] |= (q(n, k) as u32) << (4 * (k % 8));
    }
    let mut scales = vec![f16::ZERO; groups(columns) * rows];
    for (n, g) in (0..rows).flat_map(|n| (0..groups(columns)).map(move |g| (n, g))) {
        qzeros[g * rows / 8 + n / 8] |= (zero(n, g) as u32 - 1) << (4 * (n % 8));
        scales[g * rows + n] = f16::from_f32(scale(n, g));
    }
    let order: Vec<i32> = (0..columns).map(|k| (k / GROUP) as i32).collect();
    let tensors = vec![
        ("qweight", Dtype::I32, vec![columns / 8, rows], bytes_of(&qweight)),
        ("qzeros", Dtype::I32, vec![groups(columns), rows / 8], bytes_of(&qzeros)),
        ("scales", Dtype::F16, vec![groups(columns), rows], bytes_of(&scales)),
        ("g_idx", Dtype::I32, vec![columns], bytes_of(&order)),
    ];
    let number = |n, k| (q(n, k) as f32 - zero(n, k / GROUP) as f32) * scale(n, k / GROUP);
    (tensors, numbers([rows, columns], number))
}

fn awq(map: usize, [rows, columns]: [usize; 2]) -> (Tensors, Vec<f32>) {
    // Output feature 8 j + i lies at this place of word j.
    const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    let q = |n: usize, k: usize| code(map, n * columns + k, 16);
    let zero = |n: usize, g: usize| code(map, n * 5 + g, 16);
    let scale = |n: usize, g: usize| scale(map, n * 3 + g);
    let word = |n: usize, row: usize| (row * rows / 8 + n / 8, 4 * PLACES[n % 8]);
    let mut qweight = vec![0u32; columns * rows / 8];
    for (n, k) in (0..rows).flat_map(|n| (0..columns).map(move |k| (n, k))) {
        let (index, shift) = word(n, k);
        qweight[index] |= (q(n, k) as u32) << shift;
    }
    let mut qzeros = vec![0u32; groups(columns) * rows / 8];
    let mut scales = vec![f16::ZERO; groups(columns) * rows];
    for (n, g) in (0..rows).flat_map(|n| (0..groups(columns)).map(move |g| (n, g))) {
        let (index, shift) = word(n, g);
        qzeros[index] |= (zero(n, g) as u32) << shift;
        scales[g * rows + n] = f16::from_f32(scale(n, g));
    }
    let tensors = vec![
        ("qweight", Dtype::I32, vec![columns, rows / 8], bytes_of(&qweight)),
        ("qzeros", Dtype::I32, vec![groups(columns), rows / 8], bytes_of(&qzeros)),
        ("scales", Dtype::F16, vec![groups(columns), rows], bytes_of(&scales)),
    ];
    let number = |n, k| (q(n, k) as f32 - zero(n, k / GROUP) as f32) * scale(n, k / GROUP);
    (tensors, numbers([rows, columns], number))
}

/// compressed-tensors, `BITS` bits, with zero points.
fn packed<const BITS: usize>(map: usize, [rows, columns]: [usize; 2]) -> (Tensors, Vec<f32>) {
    let (per_word, limit) = (32 / BITS, 1 << BITS);
    let q = |n: usize, k: usize| code(map, n * columns + k, limit);
    let zero = |n: usize, g: usize| code(map, n * 5 + g, limit);
    let scale = |n: usize, g: usize| scale(map, n * 3 + g) / (limit / 16) as f32;
    let mut words = vec![0u32; rows * columns / per_word];
    for (n, k) in (0..rows).flat_map(|n| (0..columns).map(move |k| (n, k))) {
        words[n * columns / per_word + k / per_word] |= (q(n, k) as u32) << (BITS * (k % per_word));
    }
    let groups = groups(columns);
    let mut zeros = vec![0u32; rows.div_ceil(per_word) * groups];
    for (n, g) in (0..rows).flat_map(|n| (0..groups).map(move |g| (n, g))) {
        zeros[n / per_word * groups + g] |= (zero(n, g) as u32) << (BITS * (n % per_word));
    }
    let scales = numbers([rows, groups], scale);
    let zeros_shape = vec![rows.div_ceil(per_word), groups];
    let tensors = vec![
        ("weight_packed", Dtype::I32, vec![rows, columns / per_word], bytes_of(&words)),
        ("weight_scale", Dtype::F32, vec![rows, groups], bytes_of(&scales)),
        ("weight_zero_point", Dtype::I32, zeros_shape, bytes_of(&zeros)),
        ("weight_shape", Dtype::I64, vec![2], bytes_of(&[rows as i64, columns as i64])),
    ];
    let number = |n, k| (q(n, k) as f32 - zero(n, k / GROUP) as f32) * scale(n, k / GROUP);
    (tensors, numbers([rows, columns], number))
}

/// Nibbles of e2m1, the even column low.
fn fp4_bytes(map: usize, [rows, columns]: [usize; 2]) -> Vec<u8> {
    let q = |n: usize, k: usize| code(map, n * columns + k, 16) as u8;
    let byte = |index: usize| {
        let (n, k) = (index / (columns / 2), index % (columns / 2) * 2);
        q(n, k) | q(n, k + 1) << 4
    };
    (0..rows * columns / 2).map(byte).collect()
}

fn fp4_number(map: usize, columns: usize, n: usize, k: usize) -> f32 {
    e2m1_to_f32(code(map, n * columns + k, 16) as u8)
}

fn e4m3_scales(map: usize, rows: usize, groups: usize) -> Vec<u8> {
    (0..rows * groups).map(|index| 0x30 + code(map, index, 9) as u8).collect()
}

fn nvfp4(
    map: usize,
    shape: [usize; 2],
    global: (&'static str, f32),
    codes: &'static str,
) -> (Tensors, Vec<f32>) {
    let [rows, columns] = shape;
    let scales = e4m3_scales(map, rows, groups(columns));
    let (name, stored) = global;
    let tensors = vec![
        (codes, Dtype::U8, vec![rows, columns / 2], fp4_bytes(map, shape)),
        ("weight_scale", Dtype::F8_E4M3, vec![rows, groups(columns)], scales.clone()),
        (name, Dtype::F32, vec![1], bytes_of(&[stored])),
    ];
    let factor = if name == "weight_scale_2" { stored } else { 1.0 / stored };
    let number = |n: usize, k: usize| {
        let scale = e4m3_to_f32(scales[n * groups(columns) + k / GROUP]);
        fp4_number(map, columns, n, k) * scale * factor
    };
    (tensors, numbers(shape, number))
}

fn nvfp4_modelopt(map: usize, shape: [usize; 2]) -> (Tensors, Vec<f32>) {
    let (mut tensors, numbers) = nvfp4(map, shape, ("weight_scale_2", 0.01), "weight");
    tensors.push(("input_scale", Dtype::F32, vec![], bytes_of(&[0.5f32])));
    (tensors, numbers)
}

fn nvfp4_compressed(map: usize, shape: [usize; 2]) -> (Tensors, Vec<f32>) {
    nvfp4(map, shape, ("weight_global_scale", 128.0), "weight_packed")
}

fn powers_of_two(map: usize, rows: usize, columns: usize) -> Vec<u8> {
    (0..rows * columns.div_ceil(32)).map(|index| 118 + code(map, index, 4) as u8).collect()
}

fn mxfp4(map: usize, [rows, columns]: [usize; 2]) -> (Tensors, Vec<f32>) {
    let scales = powers_of_two(map, rows, columns);
    let tensors = vec![
        ("weight_packed", Dtype::U8, vec![rows, columns / 2], fp4_bytes(map, [rows, columns])),
        ("weight_scale", Dtype::U8, vec![rows, columns.div_ceil(32)], scales.clone()),
    ];
    let number = |n: usize, k: usize| {
        fp4_number(map, columns, n, k) * e8m0_to_f32(scales[n * columns.div_ceil(32) + k / 32])
    };
    (tensors, numbers([rows, columns], number))
}

/// Any code but those of NaN.
fn fp8_code(map: usize, index: usize) -> u8 {
    (code(map, index, 0x60) + 128 * code(map, index, 2)) as u8
}

fn mxfp8(map: usize, [rows, columns]: [usize; 2]) -> (Tensors, Vec<f32>) {
    let scales = powers_of_two(map, rows, columns);
    let codes: Vec<u8> = (0..rows * columns).map(|index| fp8_code(map, index)).collect();
    let tensors = vec![
        ("weight", Dtype::F8_E4M3, vec![rows, columns], codes.clone()),
        ("weight_scale", Dtype::U8, vec![rows, columns.div_ceil(32)], scales.clone()),
    ];
    let number = |n: usize, k: usize| {
        e4m3_to_f32(codes[n * columns + k]) * e8m0_to_f32(scales[n * columns.div_ceil(32) + k / 32])
    };
    (tensors, numbers([rows, columns], number))
}

fn fp8_tensor(map: usize, [rows, columns]: [usize; 2]) -> (Tensors, Vec<f32>) {
    let codes: Vec<u8> = (0..rows * columns).map(|index| fp8_code(map, index)).collect();
    let tensors = vec![
        ("weight", Dtype::F8_E4M3, vec![rows, columns], codes.clone()),
        ("weight_scale", Dtype::F32, vec![], bytes_of(&[scale(map, 1)])),
    ];
    (tensors, numbers([rows, columns], |n, k| e4m3_to_f32(codes[n * columns + k]) * scale(map, 1)))
}

fn fp8_channel(map: usize, [rows, columns]: [usize; 2]) -> (Tensors, Vec<f32>) {
    let codes: Vec<u8> = (0..rows * columns).map(|index| fp8_code(map, index)).collect();
    let scales: Vec<f32> = (0..rows).map(|row| scale(map, row)).collect();
    let tensors = vec![
        ("weight", Dtype::F8_E4M3, vec![rows, columns], codes.clone()),
        ("weight_scale", Dtype::F32, vec![rows, 1], bytes_of(&scales)),
    ];
    (tensors, numbers([rows, columns], |n, k| e4m3_to_f32(codes[n * columns + k]) * scales[n]))
}

fn int8(map: usize, [rows, columns]: [usize; 2]) -> (Tensors, Vec<f32>) {
    let codes: Vec<u8> = (0..rows * columns).map(|index| code(map, index, 256) as u8).collect();
    let scales: Vec<f32> = (0..rows).map(|row| scale(map, row) / 16.0).collect();
    let tensors = vec![
        ("weight", Dtype::I8, vec![rows, columns], codes.clone()),
        ("weight_scale", Dtype::F32, vec![rows, 1], bytes_of(&scales)),
    ];
    (tensors, numbers([rows, columns], |n, k| f32::from(codes[n * columns + k] as i8) * scales[n]))
}

fn compressed(format: &str, weights: Value, activations: Value) -> Value {
    let group =
        json!({"targets": ["Linear"], "weights": weights, "input_activations": activations});
    let groups = json!({"group_0": group});
    json!({"quant_method": "compressed-tensors", "format": format, "config_groups": groups})
}

/// Name of the format, `quantization_config`, layout, and how far logits may be from the twin's:
/// activations become bfloat16, FP8 or INT8.
fn layouts() -> Vec<(&'static str, Value, Layout, f64)> {
    let grouped = |bits: usize| json!({"num_bits": bits, "group_size": GROUP});
    let dynamic = json!({"num_bits": 8, "dynamic": true});
    let gptq_config =
        json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": false});
    let awq_config =
        json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"});
    let modelopt = json!({"quant_method": "modelopt", "quant_algo": "NVFP4"});
    let eight = json!({"num_bits": 8});
    vec![
        ("int4-w4a16", gptq_config, gptq, 1e-4),
        ("int4-w4a16", awq_config, awq, 1e-4),
        ("int4-w4a16", compressed("pack-quantized", grouped(4), Value::Null), packed::<4>, 1e-4),
        ("int8-w8a16", compressed("pack-quantized", grouped(8), Value::Null), packed::<8>, 1e-4),
        ("nvfp4", modelopt, nvfp4_modelopt, 1e-4),
        (
            "nvfp4",
            compressed("nvfp4-pack-quantized", grouped(4), Value::Null),
            nvfp4_compressed,
            1e-4,
        ),
        ("mxfp4", compressed("mxfp4-pack-quantized", grouped(4), Value::Null), mxfp4, 1e-4),
        ("mxfp8", compressed("mxfp8-quantized", grouped(8), Value::Null), mxfp8, 1e-4),
        (
            "fp8-tensor",
            json!({"quant_method": "fp8", "activation_scheme": "dynamic"}),
            fp8_tensor,
            1e-2,
        ),
        (
            "fp8-channel",
            compressed("float-quantized", eight.clone(), dynamic.clone()),
            fp8_channel,
            1e-2,
        ),
        ("int8-w8a8", compressed("int-quantized", eight, dynamic), int8, 1e-3),
    ]
}

/// Linear maps of the fixture that quantisation tools replace.
fn is_replaced(name: &str) -> bool {
    name.contains("_proj.weight") || name.contains(".experts.")
}

/// The fixture with its maps in a layout, and its twin.
fn quantized(config: &Value, layout: Layout) -> (Edited, Edited) {
    let mut stored = Edited::of("mixtral_top2").set("quantization_config", config.clone());
    let mut twin = Edited::of("mixtral_top2");
    let names: Vec<String> =
        twin.tensors.keys().filter(|name| is_replaced(name)).cloned().collect();
    for (map, name) in names.iter().enumerate() {
        let (dtype, shape, bytes) = twin.tensor(name);
        let (tensors, numbers) = layout(map, [shape[0], shape[1]]);
        assert_eq!(*dtype, Dtype::F32);
        *bytes = bytes_of(&numbers);
        stored.tensors.remove(name);
        let base = name.strip_suffix("weight").unwrap();
        for (ending, dtype, shape, bytes) in tensors {
            stored.tensors.insert(format!("{base}{ending}"), (dtype, shape, bytes));
        }
    }
    (stored, twin)
}

#[test]
fn every_public_layout_loads_and_agrees_with_its_dequantised_twin() {
    let fixture = Fixture::read("mixtral_top2");
    for (format, config, layout, limit) in layouts() {
        let (stored, twin) = quantized(&config, layout);
        let model = stored.load().unwrap_or_else(|why| panic!("{config}: {why}"));
        let counts: Vec<_> = model.parameters().by_group().collect();
        let used = |name: &str| counts.iter().any(|(_, format, _)| *format == name);
        assert!(used(format), "{config}: {counts:?}");
        let found = logits(&model, &fixture.prompt);
        let expected = logits(&twin.load().unwrap(), &fixture.prompt);
        let difference = relative_difference(&found, &expected);
        assert!(difference < limit, "{config}: differs by {difference}");
    }
}

#[test]
fn maps_that_were_left_alone_stay_plain() {
    for (format, config, layout, _) in layouts() {
        let (mut stored, twin) = quantized(&config, layout);
        let plain = "model.layers.0.self_attn.o_proj.";
        stored.tensors.retain(|name, _| !name.starts_with(plain));
        let weight = format!("{plain}weight");
        stored.tensors.insert(weight.clone(), twin.tensors[&weight].clone());
        let model = stored.load().unwrap_or_else(|why| panic!("{format}, {config}: {why}"));
        assert!(model.parameters().total() > 0);
    }
}

#[test]
fn a_missing_or_mis_shaped_tensor_of_any_layout_is_named() {
    for (_, config, layout, _) in layouts() {
        let (stored, _) = quantized(&config, layout);
        let base = "model.layers.1.block_sparse_moe.experts.0.w2.";
        let names: Vec<String> =
            stored.tensors.keys().filter(|name| name.starts_with(base)).cloned().collect();
        for name in names {
            let optional = ["zero_point", "g_idx", "shape", "input_scale"];
            let (mut missing, mut longer) =
                (Edited::of("mixtral_top2"), Edited::of("mixtral_top2"));
            for edited in [&mut missing, &mut longer] {
                edited.config.clone_from(&stored.config);
                edited.tensors.clone_from(&stored.tensors);
            }
            missing.tensors.remove(&name);
            if !optional.iter().any(|optional| name.ends_with(optional)) {
                assert!(missing.error().contains(&name), "{}", missing.error());
            }
            if name.ends_with("shape") || name.ends_with("input_scale") {
                continue;
            }
            let (_, shape, bytes) = longer.tensor(&name);
            let rest = shape.iter().skip(1).product::<usize>().max(1);
            match shape.first_mut() {
                Some(rows) => *rows += 1,
                None => *shape = vec![2],
            }
            let row = bytes.len() / (shape[0] - 1).max(1);
            assert!(rest > 0);
            bytes.extend(vec![1; row]);
            assert!(longer.error().contains(&name), "{}", longer.error());
        }
    }
}

#[test]
fn columns_in_another_order_are_refused_by_name() {
    let (_, config, layout, _) = layouts().swap_remove(0);
    let (mut stored, _) = quantized(&config, layout);
    let name = "model.layers.0.block_sparse_moe.experts.1.w1.g_idx";
    stored.tensor(name).2[0] = 1;
    let error = stored.error();
    assert!(error.contains(name) && error.contains("desc_act"), "{error}");
}

/// The fixture of gpt-oss with sizes that are whole blocks: 64 hidden features, 32 in experts.
fn wide_gpt_oss() -> Edited {
    let mut wide = Edited::of("gpt_oss_plain").set("hidden_size", json!(64));
    wide = wide.set("intermediate_size", json!(32));
    for (name, (dtype, shape, bytes)) in &mut wide.tensors {
        assert_eq!(*dtype, Dtype::F32, "{name}");
        let of_hidden = name.contains("norm") || name.ends_with("o_proj.bias");
        *shape = match &shape[..] {
            [experts, ..] if name.ends_with("down_proj") => vec![*experts, 32, 64],
            [experts, ..] if name.ends_with("gate_up_proj") => vec![*experts, 64, 64],
            [experts, _] if name.ends_with("proj_bias") => vec![*experts, 64],
            [_, inputs] if name.ends_with("o_proj.weight") => vec![64, *inputs],
            [rows, _] => vec![*rows, 64],
            [_] if of_hidden => vec![64],
            other => other.to_vec(),
        };
        let value = |index| (code(3, index, 41) as f32 - 20.0) / 100.0;
        *bytes = bytes_of(&(0..shape.iter().product()).map(value).collect::<Vec<f32>>());
    }
    wide
}

#[test]
fn experts_of_gpt_oss_in_blocks_agree_with_their_twin() {
    let (mut stored, mut twin) = (wide_gpt_oss(), wide_gpt_oss());
    stored = stored.set("quantization_config", json!({"quant_method": "mxfp4"}));
    let is_experts = |name: &String| name.contains("experts") && name.ends_with("_proj");
    let names: Vec<String> = twin.tensors.keys().filter(|name| is_experts(name)).cloned().collect();
    assert!(!names.is_empty());
    for (map, name) in names.iter().enumerate() {
        let (_, shape, bytes) = twin.tensor(name);
        let [experts, columns, rows] = shape[..] else { panic!("{name} has shape {shape:?}") };
        let (tensors, values) = mxfp4(map, [experts * rows, columns]);
        // x @ W: columns outside.
        let number = |index: usize| {
            let (expert, column) = (index / (columns * rows), index / rows % columns);
            values[(expert * rows + index % rows) * columns + column]
        };
        *bytes = bytes_of(&(0..values.len()).map(number).collect::<Vec<f32>>());
        stored.tensors.remove(name);
        for (ending, (_, dtype, _, bytes)) in ["blocks", "scales"].into_iter().zip(tensors) {
            let mut shape = vec![experts, rows, columns / 32];
            shape.extend((ending == "blocks").then_some(16));
            stored.tensors.insert(format!("{name}_{ending}"), (dtype, shape, bytes));
        }
    }
    let prompt: Vec<u32> = (0..20).map(|index| index * 3 % 67).collect();
    let model = stored.load().unwrap();
    let found = logits(&model, &prompt);
    let expected = logits(&twin.load().unwrap(), &prompt);
    let difference = relative_difference(&found, &expected);
    assert!(difference < 1e-4, "differs by {difference}");

    let missing = "model.layers.1.mlp.experts.down_proj_scales";
    stored.tensors.remove(missing);
    assert!(stored.error().contains(missing));
}
