//! `scalebench disperse`

use anyhow::Result;
use scalebench_generation::{Dispersion, Tensor, Trace};

use crate::cli::Disperse;
use crate::run::store::write_file;

pub(super) fn run(args: &Disperse) -> Result<()> {
    let Disperse { small, large, input, scale, eta, .. } = *args;
    let matrix = scalebench_generation::disperse(Dispersion { small, large, input, scale, eta })?;
    let (n_rows, n_columns) = (large * large, small * small);
    let Some(file) = &args.out else {
        for row in matrix.chunks(n_columns) {
            let cells: Vec<String> = row.iter().map(|value| format!("{value:>12.8}")).collect();
            println!("{}", cells.join(" "));
        }
        return Ok(());
    };
    let mut trace = Trace::default();
    trace.tensors.insert("R".to_owned(), Tensor::from_vec(matrix, (n_rows, n_columns), &candle_core::Device::Cpu)?);
    write_file(file, &trace.safetensors()?)
}
