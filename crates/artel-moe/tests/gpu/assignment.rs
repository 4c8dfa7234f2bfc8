//! The aligned form: bit for bit the reference's, padding and what is not in use included.

use artel_gpu_test::{Case, Gpu};
use artel_moe::MoeError;
use artel_moe::assignment::cuda::{Align, AlignedSlices, FEW_PAIRS_MAX, IdForm};
use artel_moe::assignment::{
    AlignOptions, Assignment, LocalExperts, NonLocalExperts, PaddedLength, Workspace, cpu,
};
use artel_moe::eplb::ExpertMap;
use artel_moe::packing;

/// What is loaded once and run on many batches.
#[derive(Clone)]
struct Setting {
    num_experts: usize,
    block_size: usize,
    map: Option<(ExpertMap, NonLocalExperts)>,
    padded_length: PaddedLength,
    ids: IdForm,
}

impl Setting {
    fn plain(num_experts: usize, block_size: usize) -> Self {
        let padded_length = PaddedLength::WorstCase;
        Self { num_experts, block_size, map: None, padded_length, ids: IdForm::Plain }
    }

    fn options(&self) -> AlignOptions<'_> {
        let experts = match &self.map {
            None => LocalExperts::All,
            Some((map, non_local)) => LocalExperts::Mapped(map, *non_local),
        };
        let padded_length = self.padded_length;
        AlignOptions {
            experts,
            padded_length,
            ..AlignOptions::new(self.num_experts, self.block_size)
        }
    }
}

pub fn cases() -> Vec<Case> {
    let sizes = [
        (0, 4),
        (1, 2),
        (8, 1),
        (8, 4),
        (9, 48),
        (12, 64),
        (256, 16),
        (200, 128),
        (512, 8),
        (513, 32),
    ];
    let mut settings: Vec<Setting> =
        sizes.into_iter().map(|(experts, block)| Setting::plain(experts, block)).collect();
    for (num_experts, block_size) in [(8, 4), (256, 64)] {
        for non_local in [NonLocalExperts::Drop, NonLocalExperts::ZeroBlocks] {
            // Every third expert lives here, in reverse.
            let num_local = num_experts / 3;
            let local = |expert: usize| (num_local - 1) as i32 - (expert / 3) as i32;
            let local_ids = (0..num_experts).map(|expert| {
                if expert % 3 == 1 && expert / 3 < num_local { local(expert) } else { -1 }
            });
            let map = ExpertMap::from_local_ids(local_ids.collect(), num_local).expect("legal");
            let setting = Setting::plain(num_experts, block_size);
            settings.push(Setting { map: Some((map, non_local)), ..setting });
        }
    }
    let whole = Setting { padded_length: PaddedLength::WholeBlocks, ..Setting::plain(256, 16) };
    settings.push(Setting { ids: IdForm::Packed, ..whole });
    settings.into_iter().map(case).collect()
}

fn case(setting: Setting) -> Case {
    let rule = setting.map.as_ref().map(|(_, non_local)| non_local);
    let name = format!(
        "assignment::{}_experts_blocks_of_{}_{rule:?}_{:?}",
        setting.num_experts, setting.block_size, setting.ids
    );
    let options = setting.clone();
    let load = move |kernels: &mut _| Align::load(kernels, &options.options(), options.ids);
    Case::new(name, load, move |gpu, align| {
        batches(setting.num_experts).iter().try_for_each(|ids| check(gpu, align, &setting, ids))
    })
}

/// No pair, one, all to one expert, ids that do not exist, and both sides of every switch.
fn batches(num_experts: usize) -> Vec<Vec<i32>> {
    let mut batches = vec![
        vec![],
        vec![0],
        vec![3; 33],
        vec![1, 1, 5, 5, 1],
        vec![-1, 0, 7, 8, 100, -5, 2],
        vec![i32::MIN, i32::MAX, -1],
        vec![7, 6, 5, 4, 3, 2, 1, 0, 0],
        vec![2; 3000],
        vec![-1; FEW_PAIRS_MAX + 1],
    ];
    for pairs in [16, 255, 512, 513, 1024, 1025, 2048, FEW_PAIRS_MAX, FEW_PAIRS_MAX + 1, 40_000] {
        let mut state = pairs as u64;
        let id = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
            (state >> 33) as i32 % (num_experts as i32 + 3) - 1
        };
        batches.push((0..pairs).map(id).collect());
    }
    batches
}

fn check(gpu: &Gpu, align: &Align, setting: &Setting, ids: &[i32]) -> Result<(), MoeError> {
    let options = setting.options();
    let mut expected = Assignment::default();
    cpu::align(ids, &options, &mut Workspace::default(), &mut expected)?;
    let mut expected_positions = vec![-1; ids.len()];
    for (position, &pair) in expected.sorted_token_ids.iter().enumerate() {
        if let Some(found) = expected_positions.get_mut(pair as usize) {
            *found = position as i32;
        }
    }

    let sorted_len = align.sorted_len(ids.len())?;
    assert_eq!(sorted_len, expected.sorted_token_ids.len());
    let device_ids = match setting.ids {
        IdForm::Plain => gpu.upload(ids),
        IdForm::Packed => {
            let packable = |id: &i32| (-1..=packing::PACKED_ID_MAX).contains(id);
            let pack = |id: &i32| if packable(id) { *id << 16 | 0x3f80 } else { -1 };
            gpu.upload(&ids.iter().map(pack).collect::<Vec<_>>())
        }
    };
    let map = setting.map.as_ref().map(|(map, _)| gpu.upload(map.local_ids()));
    let mut workspace = gpu.poisoned::<i32>(align.workspace_len(ids.len()));
    let mut sorted_token_ids = gpu.poisoned::<i32>(sorted_len);
    let mut expert_ids = gpu.poisoned::<i32>(expected.expert_ids.len());
    let mut num_tokens_post_padded = gpu.poisoned::<i32>(1);
    let mut pair_positions = gpu.poisoned::<i32>(ids.len());
    for _ in 0..2 {
        let mut out = AlignedSlices {
            sorted_token_ids: sorted_token_ids.slice_mut(),
            expert_ids: expert_ids.slice_mut(),
            num_tokens_post_padded: num_tokens_post_padded.slice_mut(),
            pair_positions: pair_positions.slice_mut(),
        };
        let map = map.as_ref().map(|map| map.slice());
        align.launch(&gpu.stream, device_ids.slice(), map, &mut workspace.slice_mut(), &mut out)?;
        let pairs = ids.len();
        let used = gpu.download(&num_tokens_post_padded);
        assert_eq!(used, [expected.num_tokens_post_padded as i32], "{pairs} pairs");
        assert_eq!(gpu.download(&expert_ids), expected.expert_ids, "{pairs} pairs");
        assert_eq!(gpu.download(&pair_positions), expected_positions, "{pairs} pairs");
        assert_eq!(gpu.download(&sorted_token_ids), expected.sorted_token_ids, "{pairs} pairs");
    }
    Ok(())
}
