//! Packs the files that travel with the program.
//!
//! Of a weight of 16 bits the low byte is noise and the high one is not, so each kind lies together before it is deflated: an
//! eighth less than as they are. A checkpoint that took a part from another one, perhaps changing a tensor of it, is packed as its
//! difference from that.

#![allow(clippy::print_stdout, reason = "a build script talks to cargo on stdout")]

use std::fmt::Write as _;
use std::io::{Error, Result, Write as _};
use std::path::Path;

const EXPERIMENTS: [&str; 8] = ["emoji", "nightly", "pocket", "quick", "repetition", "rivals", "superres", "video"];
const DATASETS: [&str; 5] = ["pocket", "pocket-i3d", "pocket-inception", "pocket-motion", "pocket-upscaler"];

fn main() -> Result<()> {
    let variable = |name| std::env::var_os(name).ok_or_else(|| Error::other("cargo sets its variables"));
    let (manifest, out) = (variable("CARGO_MANIFEST_DIR")?, variable("OUT_DIR")?);
    let (root, out) = (Path::new(&manifest).join("../.."), Path::new(&out));
    println!("cargo::rerun-if-changed=build.rs");
    let mut paths: Vec<String> = EXPERIMENTS.iter().map(|name| format!("experiments/{name}.yaml")).collect();
    for name in DATASETS {
        find(&root, &format!("datasets/{name}"), &mut paths)?;
    }
    paths.sort_unstable();
    let mut list = String::from("&[\n");
    let mut weights: Vec<(usize, Vec<u8>)> = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
        let content = std::fs::read(root.join(path))?;
        let (mut packed, mut like) = (pack(path, &content)?, None);
        if path.ends_with(".safetensors") {
            for (other, of) in weights.iter().filter(|(_, of)| of.len() == content.len()) {
                let difference: Vec<u8> = content.iter().zip(of).map(|(a, b)| a ^ b).collect();
                let difference = pack(path, &difference)?;
                if difference.len() < packed.len() {
                    (packed, like) = (difference, Some(*other));
                }
            }
            weights.push((i, content));
        }
        std::fs::write(out.join(format!("{i}.zlib")), packed)?;
        writeln!(list, "File {{ path: {path:?}, like: {like:?}, packed: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{i}.zlib\")) }},")
            .map_err(Error::other)?;
    }
    list.push_str("]\n");
    std::fs::write(out.join("files.rs"), list)
}

/// Deflates a file's bytes; of weights first those at even places.
fn pack(path: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    if path.ends_with(".safetensors") {
        let split: Vec<u8> = content.iter().step_by(2).chain(content.iter().skip(1).step_by(2)).copied().collect();
        packed.write_all(&split)?;
    } else {
        packed.write_all(content)?;
    }
    packed.finish()
}

/// Adds the files of a folder and those below it, but for pictures and logs of training.
fn find(root: &Path, folder: &str, paths: &mut Vec<String>) -> Result<()> {
    println!("cargo::rerun-if-changed={}", root.join(folder).display());
    for entry in std::fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            find(root, &path, paths)?;
        } else if !path.ends_with(".png") && !path.ends_with("training.json") {
            paths.push(path);
        }
    }
    Ok(())
}
