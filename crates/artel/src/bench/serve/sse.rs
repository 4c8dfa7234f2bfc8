//! Server-sent events: bytes, in whatever pieces they arrive, to the data of events.
//!
//! The format is that of the HTML standard: lines end with LF, CR LF or CR; a line that begins with
//! a colon is a comment; an empty line ends an event, whose `data` lines are joined by LF. Lines are
//! put together as bytes, so a character may be split anywhere.

/// What a UTF-8 stream may begin with, and is ignored.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a stream of events.
#[derive(Debug, Default)]
pub struct EventParser {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// `data` lines of the event that has not ended yet.
    data: Option<Vec<u8>>,
    /// The last byte was a CR: a LF now belongs to the same line end.
    after_carriage_return: bool,
    /// The first line has been read.
    started: bool,
}

impl EventParser {
    /// Takes the next bytes and returns the data of the events that end in them.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for &byte in bytes {
            let ends_before = std::mem::take(&mut self.after_carriage_return);
            match byte {
                b'\n' if ends_before => {}
                b'\n' => self.end_line(&mut events),
                b'\r' => {
                    self.end_line(&mut events);
                    self.after_carriage_return = true;
                }
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// The stream is over: some servers leave out the empty line after the last event.
    pub fn finish(mut self) -> Option<String> {
        let mut events = Vec::new();
        if !self.line.is_empty() {
            self.end_line(&mut events);
        }
        self.end_line(&mut events);
        events.pop()
    }

    fn end_line(&mut self, events: &mut Vec<String>) {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.started, true) && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        if line.is_empty() {
            let data = self.data.take();
            events.extend(data.map(|data| String::from_utf8_lossy(&data).into_owned()));
            return;
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        if field == b"data" {
            let value = value.strip_prefix(b":").unwrap_or(value);
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = EventParser::default();
        let mut events: Vec<String> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        events.extend(parser.finish());
        events
    }

    #[test]
    fn comments_other_fields_and_line_ends_of_all_kinds() {
        let stream = "\u{feff}: ping\n\ndata: {\"a\":1}\n\nevent: x\rid: 7\rdata:two\rdata: lines\r\r\
                      data: [DONE]\r\n\r\n: bye\n\ndata\n\nretry: 5\n\n";
        assert_eq!(parse(&[stream.as_bytes()]), ["{\"a\":1}", "two\nlines", "[DONE]", ""]);
    }

    #[test]
    fn a_last_event_without_its_empty_line_counts() {
        assert_eq!(parse(&[b"data: 1\n\ndata: [DONE]"]), ["1", "[DONE]"]);
        assert_eq!(parse(&[b"data: 1\n\ndata: 2\n"]), ["1", "2"]);
        assert_eq!(parse(&[b"data: 1\n\n"]), ["1"]);
        assert!(parse(&[b""]).is_empty());
    }

    #[test]
    fn characters_may_be_split() {
        assert_eq!(parse(&[b"data: \xe2\x82", b"\xac\n", b"\n"]), ["\u{20ac}"]);
    }

    fn line_end() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("\n"), Just("\r\n"), Just("\r")]
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_events(
            texts in prop::collection::vec("[a-zäß€😀:{}\" ]{0,12}", 1..8),
            end in line_end(),
            comments in any::<bool>(),
            cuts in prop::collection::vec(0.0..1.0f64, 0..12),
        ) {
            let mut stream = String::new();
            for text in &texts {
                if comments {
                    stream += &format!(": keep alive{end}{end}");
                }
                stream += &format!("data: {text}{end}{end}");
            }
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> =
                cuts.iter().map(|share| (share * bytes.len() as f64) as usize).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(parse(&pieces), texts.clone());
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(parse(&single), texts);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let cut = cut.min(bytes.len());
            prop_assert_eq!(parse(&[&bytes]), parse(&[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
