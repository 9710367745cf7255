//! `scalebench site`

use anyhow::Result;

use crate::cli::Site;
use crate::site;

pub(super) fn run(args: &Site) -> Result<()> {
    let built = site::build(&args.out, &args.runs)?;
    let megabytes = built.bytes as f64 / 1e6;
    println!("{}: {} pages and {} samples, {megabytes:.1} MB", args.out.join("index.html").display(), built.pages, built.samples);
    Ok(())
}
