//! Writes the seeds that are made, over those that are there.

use foregate_fuzz::seeds;

fn main() -> std::io::Result<()> {
    for seed in seeds::all() {
        let folder = seeds::folder(seed.target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(seed.name), seed.bytes)?;
    }
    Ok(())
}
