use std::collections::BTreeMap;

/// What a weight is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Group {
    /// The token embedding, and the output layer when it is the same table.
    Embedding,
    /// Projections of attention.
    Attention,
    /// Dense MLPs of layers without experts.
    DenseMlp,
    /// Routers.
    Router,
    /// Routed experts.
    Experts,
    /// Experts that every token uses.
    SharedExperts,
    /// Norms.
    Norms,
    /// The output layer, when it is not the embedding.
    Head,
}

impl Group {
    /// Name as a table shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::DenseMlp => "dense MLP",
            Self::Router => "router",
            Self::Experts => "experts",
            Self::SharedExperts => "shared experts",
            Self::Norms => "norms",
            Self::Head => "output layer",
        }
    }

    /// Whether a change of format while loading touches this group. Routers, norms, embedding and
    /// output layer are small or decide too much, as `modules_to_not_convert` of FP8 checkpoints
    /// says as well.
    pub(crate) fn is_converted(self) -> bool {
        matches!(self, Self::Attention | Self::DenseMlp | Self::Experts | Self::SharedExperts)
    }
}

/// Weights of one group in one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FormatBytes {
    /// Numbers; scales of a format are not counted.
    pub parameters: usize,
    /// Bytes in memory, scales included.
    pub bytes: usize,
}

/// The parameters of a model, counted as they were loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    counts: BTreeMap<(Group, &'static str), FormatBytes>,
    experts: usize,
    experts_per_token: usize,
    tied: bool,
    matrices: Vec<(String, Group)>,
}

impl Parameters {
    pub(super) fn name_matrix(&mut self, name: String, group: Group) {
        self.matrices.push((name, group));
    }

    /// Names of the matrices that have tensors of their own, in the order in which they were read.
    pub fn matrices(&self) -> &[(String, Group)] {
        &self.matrices
    }

    pub(super) fn add(
        &mut self,
        group: Group,
        format: &'static str,
        parameters: usize,
        bytes: usize,
    ) {
        let count = self.counts.entry((group, format)).or_default();
        count.parameters += parameters;
        count.bytes += bytes;
    }

    /// Adds what says which parameters are active.
    pub(crate) fn with_usage(self, experts: usize, experts_per_token: usize, tied: bool) -> Self {
        Self { experts, experts_per_token, tied, ..self }
    }

    /// Group, format and count, in the order of [`Group`].
    pub fn by_group(&self) -> impl Iterator<Item = (Group, &'static str, FormatBytes)> {
        self.counts.iter().map(|(&(group, format), &count)| (group, format, count))
    }

    /// All parameters.
    pub fn total(&self) -> usize {
        self.counts.values().map(|count| count.parameters).sum()
    }

    /// Parameters that take part in one token: the share of the routed experts that it is routed
    /// to, and everything else but the embedding table, of which it reads one row, unless that
    /// table is the output layer too.
    pub fn active(&self) -> usize {
        let active = |(group, _, count): (Group, _, FormatBytes)| match group {
            Group::Experts => {
                count.parameters / self.experts.max(1) * self.experts_per_token.min(self.experts)
            }
            Group::Embedding if !self.tied => 0,
            _ => count.parameters,
        };
        self.by_group().map(active).sum()
    }

    /// Whether the embedding table is the output layer too.
    pub fn is_tied(&self) -> bool {
        self.tied
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        self.counts.values().map(|count| count.bytes).sum()
    }
}
