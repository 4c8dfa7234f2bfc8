use proptest::prelude::*;

use super::*;

const SHAPE: TraceShape = TraceShape { layers: 2, experts: 5, top_k: 2, source_ranks: 3 };

fn header() -> TraceHeader {
    TraceHeader::new(SHAPE, "a model").unwrap()
}

/// A trace of some records, and where each begins.
fn trace(records: &[TraceRecord]) -> (Vec<u8>, Vec<usize>) {
    let mut starts = Vec::new();
    let mut writer = TraceWriter::new(Vec::new(), header()).unwrap();
    for TraceRecord { step, source_rank, counts } in records {
        starts.push(writer.get_ref().len());
        writer.write(*step, *source_rank, counts).unwrap();
    }
    (writer.into_inner(), starts)
}

fn three_records() -> Vec<TraceRecord> {
    let record = |step, source_rank, counts| TraceRecord { step, source_rank, counts };
    vec![
        record(0, 1, vec![vec![0, 0, 3, 0, 1], vec![2, 2, 0, 0, 0]]),
        record(0, 2, vec![vec![0; 5], vec![0; 5]]),
        record(1 << 40, 0, vec![vec![127, 128, i32::MAX, 0, 0], vec![0, 1, 0, 1, 0]]),
    ]
}

fn read(bytes: &[u8]) -> (Vec<TraceRecord>, Option<TraceError>) {
    let mut records = Vec::new();
    for record in TraceReader::new(bytes).unwrap() {
        match record {
            Ok(record) => records.push(record),
            Err(error) => return (records, Some(error)),
        }
    }
    (records, None)
}

#[test]
fn the_format_is_fixed_for_all_time() {
    let shape = TraceShape { layers: 1, experts: 4, top_k: 2, source_ranks: 1 };
    let mut writer = TraceWriter::new(Vec::new(), TraceHeader::new(shape, "m").unwrap()).unwrap();
    writer.write(300, 0, &[vec![5, 0, 0, 1]]).unwrap();
    let mut expected = b"ARTELTRC".to_vec();
    expected.extend([1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0]);
    expected.extend(b"m");
    let content = [0xac, 0x02, 0, 5, 0, 1, 1];
    expected.extend([7, 0, 0, 0]);
    expected.extend(content);
    expected.extend(bytes::fnv1a(&content).to_le_bytes());
    assert_eq!(writer.into_inner(), expected);
    // Published values of the hash.
    assert_eq!([bytes::fnv1a(b""), bytes::fnv1a(b"foobar")], [0x811c_9dc5, 0xbf9c_f968]);
}

#[test]
fn what_was_written_is_read() {
    let records = three_records();
    let (file, _) = trace(&records);
    let reader = TraceReader::new(file.as_slice()).unwrap();
    assert_eq!((reader.header().shape(), reader.header().model()), (SHAPE, "a model"));
    assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), records);
}

#[test]
fn a_trace_cut_anywhere_keeps_what_came_before() {
    let records = three_records();
    let (file, mut starts) = trace(&records);
    let header_bytes = starts[0];
    starts.push(file.len());
    for length in 0..header_bytes {
        assert!(TraceReader::new(&file[..length]).unwrap_err().is_truncated());
    }
    for length in header_bytes..=file.len() {
        let complete = starts.iter().filter(|&&start| start <= length).count() - 1;
        let (read, error) = read(&file[..length]);
        assert_eq!(read, records[..complete]);
        match error {
            None => assert_eq!(length, starts[complete]),
            Some(TraceError::Truncated { offset, expected, found, .. }) => {
                assert_eq!(offset, starts[complete] as u64);
                assert!(found < expected);
            }
            Some(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_flipped_bit_is_found_and_its_record_named() {
    let (file, starts) = trace(&three_records());
    for position in starts[1] + 4..starts[2] {
        let mut broken = file.clone();
        broken[position] ^= 1;
        let (records, error) = read(&broken);
        assert_eq!(records.len(), 1);
        let error = error.unwrap().to_string();
        assert!(error.starts_with(&format!("at byte {} of the trace", starts[1])), "{error}");
        assert!(error.contains("hash"), "{error}");
    }
}

#[test]
fn records_that_lie_about_themselves_are_refused() {
    let (file, starts) = trace(&three_records());
    let with_content = |content: &[u8]| {
        let mut broken = file[..starts[0]].to_vec();
        broken.extend((content.len() as u32).to_le_bytes());
        broken.extend(content);
        broken.extend(bytes::fnv1a(content).to_le_bytes());
        read(&broken).1.unwrap().to_string()
    };
    let mut long = file[..starts[0]].to_vec();
    long.extend(u32::MAX.to_le_bytes());
    assert!(read(&long).1.unwrap().to_string().contains("length of a record is 4294967295"));
    for (content, why) in [
        (&[][..], "too short"),
        (&[0xff; 12], "too short"),
        (&[0, 3, 0, 9], "source rank of a record is 3"),
        (&[0, 0, 0, 10], "a run of zeros beyond"),
        (&[0, 0, 0], "without its length"),
        (&[0, 0, 0, 8], "too few numbers"),
        (&[0, 0, 0, 9, 1], "more bytes"),
        (&[0, 0, 0x80, 0x80, 0x80, 0x80, 0x08, 0, 8], "above 2147483647"),
    ] {
        let error = with_content(content);
        assert!(error.contains(why), "{error}");
    }
    // The second record once more.
    let mut twice = file[..starts[2]].to_vec();
    twice.extend(&file[starts[1]..starts[2]]);
    let error = read(&twice).1.unwrap().to_string();
    assert!(error.contains("is (0, 2), but must be above (0, 2)"), "{error}");
}

#[test]
fn headers_that_no_trace_has_are_refused() {
    let (file, starts) = trace(&[]);
    assert!(starts.is_empty());
    let with = |position: usize, byte: u8| {
        let mut broken = file.clone();
        broken[position] = byte;
        TraceReader::new(broken.as_slice()).unwrap_err().to_string()
    };
    assert!(with(0, b'B').contains("the beginning is \"BRTELTRC\""));
    assert!(with(8, 2).contains("the version is 2, but must be 1"));
    assert!(with(12, 0).contains("layers of a trace is 0"));
    assert!(with(15, 0xff).contains("layers of a trace"));
    assert!(with(18, 0xff).contains("experts of a trace"));
    assert!(with(20, 6).contains("experts a token of a trace is 6, but must be 1 to 5"));
    assert!(with(24, 0).contains("source ranks"));
    assert!(with(30, 0xff).contains("UTF-8"));
    let huge = TraceShape { layers: usize::MAX, experts: usize::MAX, ..SHAPE };
    assert!(TraceHeader::new(huge, "").is_err());
    assert!(TraceHeader::new(SHAPE, "x".repeat(1 << 16)).is_err());
}

#[test]
fn what_does_not_fit_the_header_is_not_written() {
    let mut writer = TraceWriter::new(Vec::new(), header()).unwrap();
    let good = vec![vec![1; 5]; 2];
    writer.write(3, 1, &good).unwrap();
    let length = writer.get_ref().len();
    for (step, rank, counts) in [
        (4, 3, good.clone()),
        (3, 1, good.clone()),
        (2, 2, good.clone()),
        (4, 0, vec![vec![1; 5]]),
        (4, 0, vec![vec![1; 5], vec![1; 4]]),
        (4, 0, vec![vec![1; 5], vec![1, 1, -1, 1, 1]]),
    ] {
        let error = writer.write(step, rank, &counts).unwrap_err();
        assert!(matches!(error, TraceError::Input(_)), "{error}");
    }
    assert_eq!(writer.get_ref().len(), length);
    writer.write(3, 2, &good).unwrap();
    assert_eq!(read(&writer.into_inner()).0.len(), 2);
}

#[test]
fn a_full_disk_is_an_error() {
    let mut disk = [0u8; 40];
    let mut writer = TraceWriter::new(disk.as_mut_slice(), header()).unwrap();
    let error = writer.write(0, 0, &[vec![1; 5], vec![1; 5]]).unwrap_err();
    assert!(matches!(error, TraceError::Io(_)), "{error}");
}

proptest! {
    #[test]
    fn any_counts_survive(counts in prop::collection::vec(prop::collection::vec(
        prop_oneof![Just(0), 0..200, 0..=i32::MAX], 5), 2), step: u64, source_rank in 0usize..3) {
        let records = vec![TraceRecord { step, source_rank, counts }];
        prop_assert_eq!(read(&trace(&records).0).0, records);
    }

    /// Whatever the bytes are, reading ends, and with no more memory than a record may take.
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = TraceReader::new(bytes.as_slice()).map(|reader| reader.count());
        let mut file = trace(&three_records()).0;
        file.extend(bytes);
        prop_assert!(read(&file).0.len() >= 3);
    }

    #[test]
    fn arbitrary_damage_does_no_harm(
        damage in prop::collection::vec((0usize..120, any::<u8>()), 1..8)
    ) {
        let mut file = trace(&three_records()).0;
        for (position, byte) in damage {
            let length = file.len();
            file[position % length] = byte;
        }
        if let Ok(reader) = TraceReader::new(file.as_slice()) {
            prop_assert!(reader.count() <= 4);
        }
    }

    #[test]
    fn varints_are_read_as_they_were_written(value: u64, rest: u8) {
        let mut bytes = Vec::new();
        bytes::put_varint(&mut bytes, value);
        prop_assert!(bytes.len() <= bytes::VARINT_BYTES_MAX);
        bytes.push(rest);
        let mut input = bytes.as_slice();
        prop_assert_eq!(bytes::take_varint(&mut input), Some(value));
        prop_assert_eq!(input, &[rest]);
    }
}
