use super::*;

const LIMITS: CudaLimits =
    CudaLimits { tokens_max: 300, sequences_max: 5, logits_max: 40, context_max: 100 };

const BLOCKS: [u32; 7] = [9, 3, 5, 7, 1, 0, 2];

fn input(cached: usize, tokens: &[u32], logits_of: LogitsOf) -> SequenceInput<'_> {
    SequenceInput { blocks: &BLOCKS, cached, tokens, logits_of }
}

/// The words of a step, section by section.
struct Written {
    step: CudaStep,
    layout: StepLayout,
    words: Vec<i32>,
}

impl Written {
    fn of(batch: &[SequenceInput<'_>], decode_rows: usize) -> Self {
        let layout = StepLayout::new(&LIMITS);
        let mut words = vec![i32::MIN; layout.words()];
        let step = layout.write(batch, decode_rows, &mut words).expect("a step within limits");
        let beyond = layout.used(&step).end;
        assert!(words[beyond..].iter().all(|&word| word == i32::MIN), "what is not uploaded");
        Self { step, layout, words }
    }

    fn section(&self, section: StepSection, count: usize) -> &[i32] {
        &self.words[self.layout.section(section)][..count]
    }
}

#[test]
fn sections_are_aligned_and_do_not_overlap() {
    let layout = StepLayout::new(&LIMITS);
    assert_eq!(layout.section(StepSection::TokenIds), 0..300);
    assert_eq!(layout.section(StepSection::UnpaddedTokens), 300..304);
    assert_eq!(layout.section(StepSection::FirstRows).len(), 8);
    assert_eq!(layout.table_stride(), 7);
    let tables = layout.section(StepSection::BlockTables);
    assert_eq!((tables.len(), tables.end), (36, layout.words()));
    assert!(tables.start.is_multiple_of(4));
}

#[test]
fn decoded_sequences_come_first() {
    let batch = [
        input(15, &[10, 11, 12], LogitsOf::LastToken),
        input(33, &[20], LogitsOf::LastToken),
        input(0, &[30], LogitsOf::Nothing),
    ];
    let written = Written::of(&batch, 0);
    let logits = LogitsRows::Listed(2);
    assert_eq!(
        written.step,
        CudaStep { tokens: 5, decode: 2, sequences: 3, tiles: 1, logits },
        "one tile of three rows"
    );
    assert_eq!(written.section(StepSection::TokenIds, 5), [20, 30, 10, 11, 12]);
    assert_eq!(written.section(StepSection::Positions, 5), [33, 0, 15, 16, 17]);
    assert_eq!(written.section(StepSection::Slots, 5), [81, 144, 159, 48, 49]);
    assert_eq!(written.section(StepSection::Lengths, 3), [34, 1, 18]);
    assert_eq!(written.section(StepSection::FirstRows, 4), [0, 1, 2, 5]);
    assert_eq!(written.section(StepSection::TileSequences, 1), [2]);
    assert_eq!(written.section(StepSection::TileRows, 1), [2]);
    assert_eq!(written.section(StepSection::LogitsRows, 2), [4, 0], "in the order of the batch");
    assert_eq!(written.section(StepSection::UnpaddedTokens, 1), [5]);
    let tables = written.section(StepSection::BlockTables, 16);
    assert_eq!((&tables[..3], tables[7], &tables[14..]), (&[9, 3, 5][..], 9, &[9, 3][..]));
}

#[test]
fn a_step_that_only_decodes_is_padded() {
    let batch = [input(3, &[7], LogitsOf::LastToken), input(99, &[8], LogitsOf::LastToken)];
    let written = Written::of(&batch, 4);
    assert_eq!(written.step, CudaStep::decode(4), "what graphs are recorded of");
    assert_eq!(written.section(StepSection::UnpaddedTokens, 1), [2]);
    assert_eq!(written.section(StepSection::Slots, 4), [147, 35, -1, -1]);
    assert_eq!(written.section(StepSection::Lengths, 4), [4, 100, 0, 0]);
    assert_eq!(written.section(StepSection::FirstRows, 5), [0, 1, 2, 3, 4]);
    let is_brought = |place: usize| {
        let mut words = written.layout.decode_words(&written.step, 7);
        words.any(|words| words.contains(&place))
    };
    let is_written = |place: &usize| written.words[*place] != i32::MIN;
    assert!((0..written.words.len()).filter(is_written).all(is_brought), "all that was written");
    let mixed = [batch[0], input(0, &[1, 2], LogitsOf::Nothing)];
    assert_eq!(Written::of(&mixed, 4).step.tokens, 3, "others are as they are");
}

#[test]
fn long_prompts_have_several_tiles_and_all_logits_on_demand() {
    let layout = StepLayout::new(&CudaLimits { context_max: 400, logits_max: 300, ..LIMITS });
    let (tokens, blocks) = ([1; 290], [0; 25]);
    let long = SequenceInput {
        blocks: &blocks,
        cached: 0,
        tokens: &tokens,
        logits_of: LogitsOf::AllTokens,
    };
    let mut words = vec![0; layout.words()];
    let step = layout.write(&[long], 0, &mut words).expect("a step within limits");
    assert_eq!((step.tiles, step.logits), (5, LogitsRows::Every));
    let one = SequenceInput { tokens: &tokens[..1], logits_of: LogitsOf::Nothing, ..long };
    let step = layout.write(&[long, one], 0, &mut words).expect("a step within limits");
    assert_eq!((step.tiles, step.logits), (5, LogitsRows::Listed(290)));
    let tiles = layout.section(StepSection::TileRows).start;
    assert_eq!(words[tiles..tiles + 5], [257, 193, 129, 65, 1], "behind the decoded row");
    let empty = layout.write(&[], 0, &mut words).expect("a step without sequences");
    assert_eq!((empty.tokens, empty.logits_rows()), (0, 0));
}

#[test]
fn what_does_not_fit_is_refused() {
    let layout = StepLayout::new(&LIMITS);
    let mut words = vec![0; layout.words()];
    let mut refused = |batch: &[SequenceInput<'_>], decode_rows: usize| {
        layout.write(batch, decode_rows, &mut words).expect_err("too much").to_string()
    };
    let one = input(0, &[1], LogitsOf::LastToken);
    assert!(refused(&[one; 6], 0).contains("6 sequences"));
    assert!(refused(&[one; 2], 6).contains("6 sequences"));
    assert!(refused(&[input(100, &[1], LogitsOf::Nothing)], 0).contains("101 positions"));
    let short = SequenceInput { blocks: &BLOCKS[..2], ..input(32, &[1], LogitsOf::Nothing) };
    assert!(refused(&[short], 0).contains("33 positions are needed"));
    let long = input(0, &[1; 90], LogitsOf::AllTokens);
    assert!(refused(&[long], 0).contains("90 rows of logits"));
    assert!(refused(&[long; 4], 0).contains("360 tokens"));
}
