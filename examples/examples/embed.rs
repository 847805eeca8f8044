//! TorchFS inside a program: a cluster in this process, files in and out through the client, and a read with two
//! storage nodes missing.
//!
//! Run it with `cargo run -p torchfs-examples --example embed`. With a real cluster, replace the first two lines of
//! `main` by `Client::connect(["host:7100"])`.

use bytes::Bytes;
use torchfs_core::Result;
use torchfs_local::LocalCluster;

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client().await?;

    // A whole file at once: it appears, or is replaced, in one step.
    client.mkdir_all("/datasets/digits").await?;
    client.write_file("/datasets/digits/labels.csv", "path,label\n0.png,seven\n").await?;

    // Piece by piece: others see the new content from the commit on.
    let file = client.create("/datasets/digits/0.png").await?;
    for number in 0..8u8 {
        file.write_at(u64::from(number) << 20, Bytes::from(vec![number; 1 << 20])).await?;
    }
    file.commit().await?;

    for entry in client.list("/datasets/digits").await? {
        println!("{:>10} {}", entry.attr.size, entry.name);
    }

    // 4+2: any two storage nodes may be missing.
    cluster.stop_store(1)?;
    cluster.stop_store(2)?;
    let image = client.open("/datasets/digits/0.png").await?;
    let some = image.read_at(5 << 20, 4096).await?;
    assert!(some.len() == 4096 && some.iter().all(|&byte| byte == 5));
    println!("read {} bytes with two of {} storage nodes stopped", some.len(), cluster.store_addrs().len());

    cluster.shutdown().await
}
