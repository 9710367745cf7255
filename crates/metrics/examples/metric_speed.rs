//! Seconds of one metric, printed as JSON, for `scripts/bench_metrics.py`.
//!
//! ```text
//! metric_speed fid|kid|kid_u|prdc X.npy Y.npy   two-dimensional arrays of <f4, C order
//! metric_speed resize IMAGE...                  decode and resize to 299 x 299, one after the other
//! ```
//!
//! Times exclude reading the arrays and include everything else; `cpu_seconds` are those of all threads
//! together, which a busy machine disturbs less. `RAYON_NUM_THREADS` sets the threads.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use scalebench_metrics::resize::{Filter, pillow_f32_image};
use scalebench_metrics::{FeatureSet, Image, KidOptions, NeighbourOptions, Preprocess, Provenance, fid, kid, kid_u, prdc};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (metric, files) = arguments.split_first().ok_or("usage: metric_speed METRIC FILE...")?;
    let (seconds, cpu, values) = if metric == "resize" {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let mut sum = 0.0;
        for file in files {
            let image = Image::open(Path::new(file))?;
            let small = pillow_f32_image(&image, 299, 299, Filter::Bicubic)?.map(|v| v.clamp(0.0, 255.0));
            sum += small.pixels.iter().flatten().map(|v| f64::from(*v)).sum::<f64>();
        }
        (start.elapsed().as_secs_f64(), cpu_seconds() - cpu, vec![sum])
    } else {
        let [x, y] = files else { return Err("two arrays are needed".into()) };
        let (x, y) = (features(Path::new(x))?, features(Path::new(y))?);
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let values = match metric.as_str() {
            "fid" => vec![fid(&x, &y)?],
            "kid" => {
                let value = kid(&x, &y, &KidOptions::TORCH_FIDELITY)?;
                vec![value.mean, value.std]
            }
            "kid_u" => vec![kid_u(&x, &y)?],
            "prdc" => {
                let value = prdc(&x, &y, &NeighbourOptions::TORCH_FIDELITY)?;
                vec![value.precision, value.recall, value.density, value.coverage]
            }
            _ => return Err(format!("no metric {metric}").into()),
        };
        (start.elapsed().as_secs_f64(), cpu_seconds() - cpu, values)
    };
    let result = serde_json::json!({ "metric": metric, "seconds": seconds, "cpu_seconds": cpu, "values": values, "peak_mib": peak_mib() });
    use std::io::Write;
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}

/// A `.npy` file of the kind `numpy.save` writes for a float32 matrix.
fn features(path: &Path) -> Result<FeatureSet, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let length = usize::from(u16::from_le_bytes(bytes.get(8..10).ok_or("no header")?.try_into()?));
    let header = std::str::from_utf8(bytes.get(10..10 + length).ok_or("no header")?)?;
    if !header.contains("'<f4'") || !header.contains("'fortran_order': False") {
        return Err(format!("{}: not a float32 array in C order", path.display()).into());
    }
    let shape = header.split(['(', ')']).nth(1).ok_or("no shape")?;
    let shape: Vec<usize> = shape.split(',').map(|n| n.trim().parse()).collect::<Result<_, _>>()?;
    let [n, dim] = shape[..] else { return Err("not a matrix".into()) };
    let data = bytes[10 + length..].as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect();
    let provenance = Provenance { extractor: "array".into(), weights: "none".into(), preprocess: Preprocess::default() };
    Ok(FeatureSet::new((0..n).map(|i| i.to_string()).collect(), (0..n as u32).collect(), data, dim, provenance)?)
}

/// Processor time of all threads so far; zero where the system does not tell.
fn cpu_seconds() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let nanoseconds = |task: std::fs::DirEntry| -> Option<f64> {
        let line = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        line.split_whitespace().next()?.parse().ok()
    };
    tasks.flatten().filter_map(nanoseconds).sum::<f64>() / 1e9
}

/// Largest resident set so far, where the system tells.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
}
