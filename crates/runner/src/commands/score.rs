//! `scalebench features` and `scalebench score`

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use scalebench_metrics::{Extractor, FeatureSet, Jackknife, Preprocess, Profile, Sample, estimate};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use crate::cli::{Features, Look, Metric, Score};
use crate::execute::Progress;
use crate::resolve::weights_file;
use crate::tables;

pub(super) fn features(args: &Features) -> Result<()> {
    let features = extract(&args.images, &args.look)?;
    features.save(&args.out)?;
    eprintln!("{} features of {} values, {}", features.len(), features.dim, features.provenance.preprocess.id());
    Ok(())
}

pub(super) fn run(args: &Score) -> Result<()> {
    let real = side(&args.real, &args.look).context("--real")?;
    let fake = side(&args.fake, &args.look).context("--fake")?;
    let mut lines = vec![["metric", "value", "low", "high", "n real", "n fake"].map(String::from).to_vec()];
    let mut json = serde_json::Map::new();
    for metric in &args.metrics {
        let (name, metric) = match metric {
            Metric::Fid => ("fid", scalebench_metrics::Metric::Fid),
            Metric::Kid => ("kid", scalebench_metrics::Metric::KidU),
        };
        let found = estimate(metric, &fake, &real, &Jackknife::STANDARD)?;
        let numbers = [found.value, found.lo, found.hi].map(|value| format!("{value:.6}"));
        let counts = [real.len(), fake.len()].map(|n| n.to_string());
        lines.push([name.to_owned()].into_iter().chain(numbers).chain(counts).collect());
        json.insert(name.to_owned(), serde_json::to_value(found)?);
    }
    if args.json {
        json.insert("n_real".into(), real.len().into());
        json.insert("n_fake".into(), fake.len().into());
        json.insert("real".into(), serde_json::to_value(&real.provenance)?);
        json.insert("fake".into(), serde_json::to_value(&fake.provenance)?);
        println!("{}", serde_json::Value::Object(json));
    } else {
        print!("{}", tables::aligned(&lines));
    }
    Ok(())
}

/// A feature file as it is, or the features of a folder.
fn side(path: &Path, look: &Look) -> Result<FeatureSet> {
    ensure!(path.exists(), "{}: expected an image folder or a feature file, found nothing", path.display());
    if path.is_dir() {
        return extract(path, look);
    }
    Ok(FeatureSet::load(path)?)
}

fn extract(images: &Path, look: &Look) -> Result<FeatureSet> {
    let Some(extractor) = &look.extractor else {
        bail!("--extractor: expected a feature network, since {} is a folder of images", images.display());
    };
    let profile: StrDeserializer<ValueError> = look.preprocess.as_str().into_deserializer();
    let profile = Profile::deserialize(profile).context("--preprocess")?;
    let samples = Sample::folder(images)?;
    let extractor = Extractor::load(&weights_file(extractor)).context("--extractor")?;
    let bar = Progress::new().bar(samples.len() as u64, "features");
    let features = extractor.features(samples, &Preprocess::whole(profile), |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(features)
}
