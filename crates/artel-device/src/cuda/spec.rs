//! What exactly is compiled: one kernel, its constants, its promises and its resources.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::{Mutex, OnceLock};

use cutile_compiler::ast::Module;
use cutile_compiler::compile_api::KernelCompiler;
use cutile_compiler::hints::{CompileOptions, DebugInfoLevel};
use cutile_compiler::registry::CUTILE_MODULES;
use cutile_compiler::specialization::{DivHint, SpecializationBits};
use quote::ToTokens;
use sha2::{Digest, Sha256};

use super::{Architecture, Assembly};

/// Makes the syntax tree of a `#[cutile::module]`: its generated `__module_ast_self`.
pub type ModuleSource = fn() -> Module;

/// One specialisation of one kernel.
///
/// Equal keys mean equal code for equal sources; the key names the kernel in packs and errors.
#[derive(Debug, Clone)]
pub struct KernelSpec {
    operation: &'static str,
    code: Code,
    entry: &'static str,
    generics: Vec<String>,
    pointers: Vec<&'static str>,
    tensors: Vec<TensorPromise>,
    warps: Option<i32>,
    occupancy: Option<i32>,
    programmatic: bool,
    needs: Architecture,
}

/// What a kernel is written in.
#[derive(Debug, Clone)]
pub(super) enum Code {
    /// A cuTile module and its name.
    Tiles(ModuleSource, &'static str),
    /// PTX.
    Assembly(Assembly),
}

/// What a kernel may assume of one tensor.
#[derive(Debug, Clone)]
struct TensorPromise {
    name: &'static str,
    dim_multiples: Vec<i32>,
    strides: Vec<i32>,
}

impl KernelSpec {
    /// Entry `entry` of the cuTile module `module_name`, whose syntax tree `module` makes.
    /// `operation` is its name for people, such as `packing/pack`.
    pub fn new(
        operation: &'static str,
        module: ModuleSource,
        module_name: &'static str,
        entry: &'static str,
    ) -> Self {
        Self::of_code(operation, Code::Tiles(module, module_name), entry)
    }

    /// The entry `{entry}_entry` of a text in assembly, for `architecture` alone. Its generics are
    /// what the text was made for; all must be named, since equal keys mean equal code.
    pub fn assembly(
        operation: &'static str,
        assembly: Assembly,
        entry: &'static str,
        architecture: Architecture,
    ) -> Self {
        Self::of_code(operation, Code::Assembly(assembly), entry).needs(architecture)
    }

    fn of_code(operation: &'static str, code: Code, entry: &'static str) -> Self {
        Self {
            operation,
            code,
            entry,
            generics: Vec::new(),
            pointers: Vec::new(),
            tensors: Vec::new(),
            warps: None,
            occupancy: None,
            programmatic: false,
            needs: Architecture::Sm80,
        }
    }

    /// Values of its const generics, in order; without the trailing one of
    /// [`programmatic`](Self::programmatic) kernels.
    pub fn generics(mut self, values: impl IntoIterator<Item = i32>) -> Self {
        self.generics.extend(values.into_iter().map(|value| value.to_string()));
        self
    }

    /// An element type for one of its type generics, in the order of all generics.
    pub fn element(mut self, name: &str) -> Self {
        self.generics.push(name.to_owned());
        self
    }

    /// These raw pointers are 16-byte aligned, which is checked at every launch.
    pub fn pointers(mut self, names: impl IntoIterator<Item = &'static str>) -> Self {
        self.pointers.extend(names);
        self
    }

    /// A tensor without gaps. `dim_multiples`: a number that divides each dimension. `strides`: in
    /// elements, -1 where known only at launch (then a multiple of 16), 1 for the last.
    pub fn tensor(mut self, name: &'static str, dim_multiples: &[i32], strides: &[i32]) -> Self {
        let (dim_multiples, strides) = (dim_multiples.to_vec(), strides.to_vec());
        self.tensors.push(TensorPromise { name, dim_multiples, strides });
        self
    }

    /// Warps of one block that compute: 4 or 8.
    pub fn warps(mut self, warps: usize) -> Self {
        self.warps = Some(warps as i32);
        self
    }

    /// Blocks that are to share a multiprocessor.
    pub fn occupancy(mut self, blocks: usize) -> Self {
        self.occupancy = Some(blocks as i32);
        self
    }

    /// Launched before its predecessor ends, where the architecture can: the kernel waits for it
    /// itself. Its last const generic is 1 then, and 0 where it may not wait.
    pub fn programmatic(mut self) -> Self {
        self.programmatic = true;
        self
    }

    /// The oldest architecture that it can be compiled for.
    pub fn needs(mut self, architecture: Architecture) -> Self {
        self.needs = architecture;
        self
    }

    /// Whether it can be compiled for `architecture`.
    pub fn runs_on(&self, architecture: Architecture) -> bool {
        match self.code {
            Code::Tiles(..) => architecture >= self.needs,
            Code::Assembly(_) => architecture == self.needs,
        }
    }

    /// What it is written in.
    pub(super) fn code(&self) -> &Code {
        &self.code
    }

    /// Whether it is launched before its predecessor has ended.
    pub fn is_programmatic(&self) -> bool {
        self.programmatic
    }

    /// Its name for people.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// The symbol that the compiler gives it.
    pub(super) fn symbol(&self) -> String {
        format!("{}_entry", self.entry)
    }

    /// Names this specialisation among all of the same architecture and sources.
    pub fn key(&self) -> String {
        let mut key = format!("{}::{}<{}>", self.operation, self.entry, self.generics.join(","));
        for TensorPromise { name, dim_multiples, strides } in &self.tensors {
            let _ = write!(key, " {name}{dim_multiples:?}{strides:?}");
        }
        if let Some(warps) = self.warps {
            let _ = write!(key, " warps={warps}");
        }
        if let Some(occupancy) = self.occupancy {
            let _ = write!(key, " occupancy={occupancy}");
        }
        if self.programmatic {
            key.push_str(" programmatic");
        }
        key.retain(|character| character != '"');
        key
    }

    /// SHA-256 of the device code that this kernel is made of, comments left out.
    pub fn source_hash(&self) -> String {
        static KNOWN: OnceLock<Mutex<HashMap<usize, String>>> = OnceLock::new();
        match self.code {
            Code::Assembly(ref assembly) => assembly.source_hash(),
            Code::Tiles(module, _) => {
                let known = KNOWN.get_or_init(Mutex::default).lock();
                let mut known = known.unwrap_or_else(|poisoned| poisoned.into_inner());
                known.entry(module as usize).or_insert_with(|| hash_of(module)).clone()
            }
        }
    }

    pub(super) fn options(&self) -> CompileOptions {
        // By default device code follows Cargo's profile: line tables would mean unoptimised kernels.
        let mut options = CompileOptions::default().debug_info(DebugInfoLevel::None);
        if let Some(warps) = self.warps {
            options = options.num_worker_warps_per_cta(warps);
        }
        if let Some(occupancy) = self.occupancy {
            options = options.occupancy(occupancy);
        }
        options
    }

    /// The front end of the compiler of tiles, told everything about a kernel of this module.
    pub(super) fn compiler(
        &self,
        module: ModuleSource,
        module_name: &'static str,
        architecture: Architecture,
    ) -> KernelCompiler<ModuleSource> {
        let mut generics = self.generics.clone();
        if self.programmatic {
            generics.push(i32::from(architecture.has_programmatic_launch()).to_string());
        }
        let strides: Vec<_> =
            self.tensors.iter().map(|tensor| (tensor.name, tensor.strides.as_slice())).collect();
        let promises: Vec<_> =
            self.tensors.iter().map(|tensor| (tensor.name, tensor.specialization())).collect();
        // Sixteen bytes is the most that the compiler makes use of.
        let aligned = DivHint::from_ptr(16);
        let pointers: Vec<_> = self.pointers.iter().map(|&name| (name, aligned)).collect();
        KernelCompiler::new(module, module_name, self.entry)
            .generics(generics)
            .strides(&strides)
            .spec_args(&promises)
            .scalar_hints(&pointers)
            .options(self.options())
            .target(architecture.name())
    }
}

impl TensorPromise {
    fn specialization(&self) -> SpecializationBits {
        let multiple = |&stride: &i32| DivHint::from_value(if stride < 0 { 16 } else { stride });
        SpecializationBits {
            shape_div: self.dim_multiples.iter().map(|&value| DivHint::from_value(value)).collect(),
            stride_div: self.strides.iter().map(multiple).collect(),
            stride_one: self.strides.iter().map(|&stride| stride == 1).collect(),
            base_ptr_div: DivHint::from_ptr(16),
            elements_disjoint: true,
        }
    }
}

/// The module and every module of ours that it uses, in a fixed order.
fn hash_of(module: ModuleSource) -> String {
    let mut sources = BTreeSet::new();
    let mut waiting = vec![module()];
    while let Some(module) = waiting.pop() {
        let text = module.ast().to_token_stream().to_string();
        if !sources.insert(text.clone()) {
            continue;
        }
        for entry in CUTILE_MODULES.iter().filter(|entry| entry.absolute_path.starts_with("artel"))
        {
            let name = entry.absolute_path.rsplit("::").next().unwrap_or_default();
            // Tokens are separated by spaces: `use crate :: device_code :: * ;`.
            if text.contains(&format!(":: {name} ::")) {
                waiting.push((entry.build)());
            }
        }
    }
    let mut hasher = Sha256::new();
    sources.iter().for_each(|source| hasher.update(source.as_bytes()));
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
