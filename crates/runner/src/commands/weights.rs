//! `scalebench weights`

use anyhow::Result;
use scalebench_metrics::convert_weights;

use crate::cli::{Weights, WeightsAction};
use crate::run::store::write_file;
use crate::words::table::aligned;

pub(super) fn run(args: &Weights) -> Result<()> {
    let WeightsAction::Convert { input, out } = &args.action;
    let file = if input.is_dir() { input.join("model.safetensors") } else { input.clone() };
    let found = convert_weights(&file)?;
    write_file(out, &found.bytes)?;
    let lines = [
        ["read", found.form],
        ["network", found.network],
        ["width", &found.width.to_string()],
        ["classes", &found.num_classes.to_string()],
        ["feature dimension", &found.feature_dim.to_string()],
        ["tensors", &found.tensors.to_string()],
        ["values", &found.values.to_string()],
        ["source blake3", &found.source_blake3],
        ["written", &out.display().to_string()],
        ["blake3", &blake3::hash(&found.bytes).to_hex()],
    ];
    print!("{}", aligned(&lines.map(|line| line.map(str::to_owned).to_vec())));
    Ok(())
}
