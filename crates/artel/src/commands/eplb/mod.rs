//! `artel eplb`: load of experts, recorded or made up, and where policies would place them.

mod convert;
mod inspect;
mod load;
mod plan;
mod plot;
mod result;
mod simulate;

use artel_moe::eplb::policy::{Balanced, Greedy, Policy, by_name};

use crate::cli::{EplbClusterArgs, EplbCommand, EplbPolicyArg};

/// Dispatches.
///
/// # Errors
/// Those of the command.
pub fn eplb(command: &EplbCommand) -> anyhow::Result<()> {
    match command {
        EplbCommand::Simulate(args) => simulate::simulate(args),
        EplbCommand::Plan(args) => plan::plan(args),
        EplbCommand::Convert(args) => convert::convert(args),
        EplbCommand::Inspect(args) => inspect::inspect(args),
    }
}

/// The policy of a name with the options that it has.
fn policy(name: EplbPolicyArg, args: &EplbClusterArgs) -> Box<dyn Policy> {
    match name.name {
        "greedy" => Box::new(Greedy { groups: args.groups.get() }),
        "balanced" => {
            let max_moves_per_layer = name.max_moves.or(args.max_moves);
            Box::new(Balanced { max_moves_per_layer, ..Balanced::default() })
        }
        other => by_name(other).expect("this is a bug: a policy without a name"),
    }
}
