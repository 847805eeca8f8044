//! Clients that remember, over a store in this process behind a network that takes its time. Time is the test's own.

use super::*;
use crate::error::{Error, Kind};
use crate::ids::{ClusterId, InodeId};
use crate::layout::Profile;
use crate::meta::memory::MemoryMeta;
use crate::meta::{
    Allocate, Allocation, Attr, AttrChange, Heartbeat, HeartbeatReply, IfExists, MetaOp, MetaSession, Name, NewInode,
    NewKind, RenameMode, SetTime, Timestamp, XattrMode, XattrName,
};
use crate::settings::LEASE;
use async_trait::async_trait;
use proptest::prelude::*;
use std::sync::atomic::AtomicBool;
use tokio::task::AbortHandle;
use tokio::time::sleep;

const ROOT: InodeId = InodeId::ROOT;

/// A store at the other end of a network.
#[derive(Debug)]
struct Far {
    memory: Arc<MemoryMeta>,
    queries: AtomicU64,
    /// State of a small generator of random numbers.
    random: AtomicU64,
    latency_us_max: u64,
    /// How much longer commands are under way.
    command_us: AtomicU64,
    /// Commands that are under way for long, if they are to be.
    delayed: Mutex<Option<Vec<Command>>>,
}

impl Far {
    fn new(seed: u64, latency_us_max: u64) -> Arc<Self> {
        let memory = Arc::new(MemoryMeta::new(ClusterId(1), Profile::DEFAULT));
        let random = AtomicU64::new(seed | 1);
        let (queries, command_us, delayed) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::default());
        Arc::new(Far { memory, queries, random, latency_us_max, command_us, delayed })
    }

    fn random(&self) -> u64 {
        let next = |mut x: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^ (x << 17)
        };
        let before = self.random.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |x| Some(next(x)));
        next(before.expect("always"))
    }

    async fn travel(&self) {
        sleep(Duration::from_micros(self.random() % (self.latency_us_max + 1))).await;
    }

    fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    /// From now on commands stay under way, and who sent them gives up.
    fn delay(&self) {
        *self.delayed.lock().expect("no panic") = Some(Vec::new());
    }

    /// What was under way is done.
    async fn deliver(&self) {
        let delayed = self.delayed.lock().expect("no panic").take();
        for command in delayed.expect("it delays") {
            self.memory.apply(command).await.expect("is done");
        }
    }

    fn client(self: &Arc<Self>) -> MetaSession {
        MetaSession::new(self.clone())
    }
}

#[async_trait]
impl MetaStore for Far {
    async fn apply(&self, command: Command) -> Result<MetaReply> {
        if let Some(delayed) = self.delayed.lock().expect("no panic").as_mut() {
            delayed.push(command);
            return Err(Error::new(Kind::Timeout, "it takes too long"));
        }
        sleep(Duration::from_micros(self.command_us.load(Ordering::Relaxed))).await;
        self.travel().await;
        let reply = self.memory.apply(command).await;
        self.travel().await;
        reply
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        self.travel().await;
        let answer = self.memory.query(query).await;
        self.travel().await;
        answer
    }

    async fn allocate(&self, _: Allocate) -> Result<Vec<Allocation>> {
        Err(Error::new(Kind::Unsupported, "there are no nodes"))
    }

    async fn heartbeat(&self, _: Heartbeat) -> Result<HeartbeatReply> {
        Err(Error::new(Kind::Unsupported, "there are no nodes"))
    }

    async fn watch(&self, watch: Watch) -> Result<Changes> {
        self.travel().await;
        let changes = self.memory.watch(watch).await;
        self.travel().await;
        changes
    }
}

/// Somebody who watches for a client, and may be made to hang.
struct Watching {
    task: AbortHandle,
    hangs: Arc<AtomicBool>,
}

impl Watching {
    fn start(client: &MetaSession) -> Self {
        let (client, hangs) = (client.clone(), Arc::new(AtomicBool::new(false)));
        let is_hung = hangs.clone();
        let task = tokio::spawn(async move {
            let mut seen = None;
            loop {
                seen = Some(client.watch(seen).await.expect("answers").upto);
                while is_hung.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
        Watching { task: task.abort_handle(), hangs }
    }

    fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Relaxed);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn file() -> NewInode {
    NewInode { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0, mtime: None }
}

async fn make(client: &MetaSession, text: &str) -> Attr {
    client.create(ROOT, name(text), file(), IfExists::Fail).await.expect("creates")
}

fn mode(mode: u32) -> AttrChange {
    AttrChange { mode: Some(mode), ..AttrChange::default() }
}

/// Until the client holds a lease.
async fn settle() {
    sleep(Duration::from_millis(50)).await;
}

#[tokio::test(start_paused = true)]
async fn a_question_that_was_asked_before_is_answered_from_memory() {
    let far = Far::new(1, 1000);
    let client = far.client();
    let made = make(&client, "a").await;
    for _ in 0..2 {
        assert_eq!(client.lookup(ROOT, name("a")).await.expect("is there").ino, made.ino);
    }
    assert_eq!((far.queries(), client.remembered()), (2, 0), "nobody watches");
    let _watching = Watching::start(&client);
    settle().await;
    for _ in 0..100 {
        assert_eq!(client.lookup(ROOT, name("a")).await.expect("is there").ino, made.ino);
        sleep(LEASE / 10).await;
    }
    assert_eq!((far.queries(), client.remembered()), (3, 99));
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_folder_asks_for_few_of_its_files() {
    const FILES: u64 = 2000;
    let far = Far::new(3, 0);
    let (reader, writer) = (far.client(), far.client());
    for number in 0..FILES {
        make(&writer, &format!("{number:06}")).await;
    }
    let _watching = Watching::start(&reader);
    settle().await;
    for number in 0..FILES {
        let attr = reader.lookup(ROOT, name(&format!("{number:06}"))).await.expect("is there");
        assert_eq!(reader.open(attr.ino).await.expect("opens").0, attr);
        sleep(Duration::from_micros(1)).await;
    }
    assert!(far.queries() < 50, "{} questions for {FILES} files", far.queries());
    // What others change is seen all the same.
    let last = name(&format!("{:06}", FILES - 1));
    let attr = reader.lookup(ROOT, last.clone()).await.expect("is there");
    writer.set_attr(attr.ino, mode(0o600)).await.expect("sets");
    assert_eq!(reader.lookup(ROOT, last).await.expect("is there").mode, 0o600);
}

#[tokio::test(start_paused = true)]
async fn who_makes_files_asks_for_few_of_their_names_and_not_for_their_folder() {
    const FILES: u64 = 2000;
    let far = Far::new(3, 0);
    let (writer, other) = (far.client(), far.client());
    for number in 0..FILES {
        make(&other, &format!("{number:06} was there")).await;
    }
    let _watching = Watching::start(&writer);
    settle().await;
    for number in 0..FILES {
        let file = name(&format!("{number:06}"));
        let missing = writer.lookup(ROOT, file.clone()).await.expect_err("is not there yet");
        assert_eq!(missing.kind(), Kind::NotFound);
        let made = make(&writer, &file.to_string()).await;
        assert_eq!(writer.lookup(ROOT, file).await.expect("is there"), made);
        let folder = writer.attr(ROOT).await.expect("is there");
        assert_eq!((folder.size, folder.mtime), (FILES + number + 1, made.mtime));
        sleep(Duration::from_millis(1)).await;
    }
    assert!(far.queries() < 50, "{} questions for {FILES} files", far.queries());
    // What others make is seen all the same.
    make(&other, "another").await;
    writer.lookup(ROOT, name("another")).await.expect("is there");
    assert_eq!(writer.attr(ROOT).await.expect("is there").size, 2 * FILES + 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_and_is_done_later_is_seen() {
    let far = Far::new(8, 0);
    let client = far.client();
    let _watching = Watching::start(&client);
    settle().await;
    let made = make(&client, "a").await;
    far.delay();
    client.set_attr(made.ino, mode(0o600)).await.expect_err("takes too long");
    client.unlink(ROOT, name("a")).await.expect_err("takes too long");
    // It is done only after this was asked.
    assert_eq!(client.attr(made.ino).await.expect("is there").mode, 0o644);
    assert_eq!(client.lookup(ROOT, name("a")).await.expect("is there").ino, made.ino);
    far.deliver().await;
    sleep(LEASE).await;
    assert_eq!(client.attr(made.ino).await.expect("is there").mode, 0o600);
    assert_eq!(client.lookup(ROOT, name("a")).await.expect_err("is gone").kind(), Kind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_client_that_is_idle_or_has_left() {
    let far = Far::new(7, 0);
    let (one, two) = (far.client(), far.client());
    let watching = Watching::start(&one);
    let made = make(&two, "a").await;
    settle().await;
    one.attr(made.ino).await.expect("is there");
    sleep(LEASE_IDLE + LEASE).await;
    // It hangs, as one would that still holds a lease, and be waited for.
    watching.hang(true);
    let start = Instant::now();
    two.set_attr(made.ino, mode(1)).await.expect("sets");
    assert_eq!(start.elapsed(), Duration::ZERO, "it was idle");
    watching.hang(false);

    assert_eq!(one.attr(made.ino).await.expect("is there").mode, 1);
    settle().await;
    sleep(LEASE / 2).await;
    // What it was told meanwhile it has forgotten.
    one.attr(made.ino).await.expect("is there");
    let before = one.remembered();
    one.attr(made.ino).await.expect("is there");
    assert_eq!(one.remembered(), before + 1, "it is not idle any more");
    watching.hang(true);
    one.leave().await;
    let start = Instant::now();
    two.set_attr(made.ino, mode(2)).await.expect("sets");
    assert_eq!(start.elapsed(), Duration::ZERO, "it has left");
    watching.hang(false);
    sleep(LEASE).await;
    assert_eq!(one.attr(made.ino).await.expect("is there").mode, 2);
    assert_eq!(one.remembered(), before + 1, "and trusts nothing any more");
}

#[tokio::test(start_paused = true)]
async fn what_a_client_itself_changes_it_asks_for_anew() {
    let far = Far::new(2, 1000);
    let client = far.client();
    let _watching = Watching::start(&client);
    settle().await;
    let (a, b) = (make(&client, "a").await, make(&client, "b").await);
    client.link(b.ino, ROOT, name("c")).await.expect("links");
    for ino in [a.ino, b.ino] {
        client.attr(ino).await.expect("is there");
    }
    client.rename((ROOT, name("a")), (ROOT, name("b")), RenameMode::Replace).await.expect("renames");
    assert_eq!(client.attr(b.ino).await.expect("is there").nlink, 1, "a name of what was replaced is gone");
    assert_eq!(client.lookup(ROOT, name("a")).await.expect_err("was moved").kind(), Kind::NotFound);
    assert_eq!(client.lookup(ROOT, name("b")).await.expect("is there").ino, a.ino);
    let folder = NewInode { kind: NewKind::Directory, ..file() };
    let folder = client.create(ROOT, name("d"), folder, IfExists::Fail).await.expect("creates");
    client.attr(folder.ino).await.expect("is there");
    client.rmdir(ROOT, name("d")).await.expect("removes");
    assert_eq!(client.attr(folder.ino).await.expect("is remembered by metadata").nlink, 0);
}

#[tokio::test(start_paused = true)]
async fn what_another_client_changes_is_forgotten_before_that_one_knows_that_it_is_done() {
    let far = Far::new(3, 5000);
    let (one, two) = (far.client(), far.client());
    let _watching = (Watching::start(&one), Watching::start(&two));
    settle().await;
    let made = make(&one, "a").await;
    for round in 0..200 {
        two.set_attr(made.ino, mode(round)).await.expect("sets");
        assert_eq!(one.attr(made.ino).await.expect("is there").mode, round);
        assert_eq!(one.attr(made.ino).await.expect("is there").mode, round);
    }
    assert!(one.remembered() >= 150, "{} of 400 from memory", one.remembered());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_under_way_when_its_subject_changed_is_not_remembered() {
    let far = Far::new(4, 20_000);
    let (one, two) = (far.client(), far.client());
    let _watching = Watching::start(&one);
    settle().await;
    let made = make(&two, "a").await;
    for round in 0..200 {
        let asked = one.attr(made.ino);
        let (asked, changed) = tokio::join!(asked, two.set_attr(made.ino, mode(round)));
        asked.expect("is there");
        changed.expect("sets");
        assert_eq!(one.attr(made.ino).await.expect("is there").mode, round);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_lease_nothing_is_answered_from_memory_and_with_the_next_it_is_again() {
    let far = Far::new(5, 1000);
    let (one, two) = (far.client(), far.client());
    let watching = Watching::start(&one);
    settle().await;
    let (a, b) = (make(&one, "a").await, make(&one, "b").await);
    for ino in [a.ino, b.ino] {
        one.attr(ino).await.expect("is there");
    }
    watching.hang(true);
    let start = Instant::now();
    two.set_attr(a.ino, mode(0o600)).await.expect("sets");
    assert!(start.elapsed() < LEASE + Duration::from_millis(100), "others wait no longer than the lease");
    let before = (far.queries(), one.remembered());
    assert_eq!(one.attr(a.ino).await.expect("is there").mode, 0o600);
    one.attr(b.ino).await.expect("is there");
    assert_eq!((far.queries(), one.remembered()), (before.0 + 2, before.1));

    watching.hang(false);
    sleep(LEASE / 2).await;
    one.attr(b.ino).await.expect("is there");
    assert_eq!(one.remembered(), before.1 + 1, "nothing of it was lost");
    assert_eq!(one.attr(a.ino).await.expect("is there").mode, 0o600);
}

#[tokio::test(start_paused = true)]
async fn who_watches_anew_begins_with_nothing() {
    let far = Far::new(6, 1000);
    let client = far.client();
    let watching = Watching::start(&client);
    settle().await;
    let made = make(&client, "a").await;
    client.attr(made.ino).await.expect("is there");
    drop(watching);
    let _watching = Watching::start(&client);
    settle().await;
    let before = far.queries();
    client.attr(made.ino).await.expect("is there");
    assert_eq!(far.queries(), before + 1);
    // Where shards are is not told: who finds them moved asks again.
    client.forget(made.ino);
    client.attr(made.ino).await.expect("is there");
    assert_eq!(far.queries(), before + 2);
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_was_under_way_when_watching_began_is_seen() {
    let far = Far::new(8, 10_000);
    let made = make(&far.client(), "a").await;
    far.command_us.store(30_000, Ordering::Relaxed);
    for round in 0..100 {
        let client = far.client();
        let watch_and_ask = async {
            let watching = Watching::start(&client);
            for _ in 0..10 {
                client.attr(made.ino).await.expect("is there");
            }
            watching
        };
        let (changed, _watching) = tokio::join!(client.set_attr(made.ino, mode(round)), watch_and_ask);
        changed.expect("sets");
        assert_eq!(client.attr(made.ino).await.expect("is there").mode, round);
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_is_given_up_is_forgotten_too() {
    let far = Far::new(7, 10_000);
    let client = far.client();
    let _watching = Watching::start(&client);
    settle().await;
    let made = make(&client, "a").await;
    client.attr(made.ino).await.expect("is there");
    let before = far.queries();
    let given_up = timeout(Duration::from_micros(1), client.set_attr(made.ino, mode(0o600)));
    given_up.await.expect_err("takes longer");
    // It goes on without whoever asked.
    settle().await;
    assert_eq!(client.attr(made.ino).await.expect("is there").mode, 0o600);
    assert_eq!(far.queries(), before, "the answer came, if to nobody");
}

/// What one of two clients does next.
#[derive(Clone, Debug)]
enum Step {
    Op(MetaOp),
    Ask(MetaQuery),
    Hang(bool),
    Wait(Duration),
}

fn inode() -> impl Strategy<Value = InodeId> {
    (1u64..8).prop_map(InodeId)
}

fn folder() -> impl Strategy<Value = InodeId> {
    prop_oneof![3 => Just(ROOT), 1 => inode()]
}

fn any_name() -> impl Strategy<Value = Name> {
    proptest::sample::select(vec!["a", "b", "c"]).prop_map(name)
}

fn attribute() -> impl Strategy<Value = XattrName> {
    proptest::sample::select(vec!["user.a", "user.b"]).prop_map(|text| XattrName::new(text).expect("a name"))
}

fn op() -> impl Strategy<Value = MetaOp> {
    let kind = prop_oneof![Just(NewKind::File), Just(NewKind::Directory), Just(NewKind::Symlink(b"a".to_vec()))];
    let if_exists = prop_oneof![Just(IfExists::Fail), Just(IfExists::Keep), Just(IfExists::Replace)];
    let rename = prop_oneof![Just(RenameMode::Replace), Just(RenameMode::Exchange), Just(RenameMode::NoReplace)];
    prop_oneof![
        4 => (folder(), any_name(), kind, if_exists).prop_map(|(parent, name, kind, if_exists)| {
            MetaOp::Create { parent, name, inode: NewInode { kind, ..file() }, if_exists, content: None }
        }),
        2 => (folder(), any_name()).prop_map(|(parent, name)| MetaOp::Unlink { parent, name }),
        2 => (folder(), any_name()).prop_map(|(parent, name)| MetaOp::Rmdir { parent, name }),
        2 => (inode(), folder(), any_name()).prop_map(|(ino, parent, name)| MetaOp::Link { ino, parent, name }),
        4 => (folder(), any_name(), folder(), any_name(), rename).prop_map(|(parent, name, new_parent, new_name, mode)| {
            MetaOp::Rename { parent, name, new_parent, new_name, mode }
        }),
        2 => (inode(), 0u32..0o777).prop_map(|(ino, bits)| MetaOp::SetAttr { ino, change: mode(bits) }),
        1 => (inode(), attribute()).prop_map(|(ino, name)| {
            MetaOp::SetXattr { ino, name, value: b"v".to_vec(), mode: XattrMode::Either }
        }),
        1 => (inode(), attribute()).prop_map(|(ino, name)| MetaOp::RemoveXattr { ino, name }),
    ]
}

fn query() -> impl Strategy<Value = MetaQuery> {
    prop_oneof![
        4 => (folder(), any_name()).prop_map(|(parent, name)| MetaQuery::Lookup { parent, name }),
        4 => inode().prop_map(MetaQuery::Attr),
        2 => inode().prop_map(MetaQuery::Open),
        2 => folder().prop_map(|ino| MetaQuery::List { ino, after: None, limit: 2, extents: false }),
        1 => folder().prop_map(|ino| MetaQuery::List { ino, after: Some(name("a")), limit: 9, extents: false }),
        1 => inode().prop_map(MetaQuery::Parent),
        1 => inode().prop_map(MetaQuery::ReadLink),
        1 => inode().prop_map(MetaQuery::Xattrs),
        1 => (inode(), attribute()).prop_map(|(ino, name)| MetaQuery::Xattr { ino, name }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => op().prop_map(Step::Op),
        12 => query().prop_map(Step::Ask),
        1 => any::<bool>().prop_map(Step::Hang),
        1 => (0u64..300).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ]
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
}

async fn walk(seed: u64, steps: Vec<(usize, Step)>) -> u64 {
    let far = Far::new(seed, 3000);
    let clients = [far.client(), far.client()];
    let watching = [Watching::start(&clients[0]), Watching::start(&clients[1])];
    for (who, step) in steps {
        match step {
            // Whatever comes of it: it is the same for both.
            Step::Op(op) => drop(clients[who].apply(op).await),
            Step::Ask(query) => {
                let expected = far.memory.query_now(&query);
                let answer = clients[who].cache().query(query.clone()).await;
                let kinds = (answer.as_ref().err().map(Error::kind), expected.as_ref().err().map(Error::kind));
                assert_eq!(kinds.0, kinds.1, "client {who}: {query:?}");
                assert_eq!(answer.ok(), expected.ok(), "client {who}: {query:?}");
            }
            Step::Hang(hangs) => watching[who].hang(hangs),
            Step::Wait(time) => sleep(time).await,
        }
    }
    clients.iter().map(MetaSession::remembered).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Two clients, one after the other: each is answered as if it had asked.
    #[test]
    fn memory_never_differs_from_the_store(
        seed in any::<u64>(),
        steps in prop::collection::vec((0usize..2, step()), 1..120),
    ) {
        paused().block_on(walk(seed, steps));
    }
}

/// All at the same time: what one has acknowledged, no other is told less than.
#[test]
fn memory_is_never_older_than_what_was_acknowledged() {
    const FILES: usize = 4;
    let mut remembered = 0;
    for seed in 1..20 {
        remembered += paused().block_on(async {
            let far = Far::new(seed, 8000);
            let mut files = Vec::new();
            for file in 0..FILES {
                files.push((make(&far.client(), &file.to_string()).await.ino, AtomicU64::new(0)));
            }
            let files = Arc::new(files);
            let clients: Vec<MetaSession> = (0..3).map(|_| far.client()).collect();
            let watching: Vec<Watching> = clients.iter().map(Watching::start).collect();
            let mut work = JoinSet::new();
            // One after the other writes each file; the last clients read only.
            for task in 0..2 * clients.len() {
                let client = clients[task % clients.len()].clone();
                work.spawn(read_and_write(far.clone(), client, files.clone(), task));
            }
            let hanging = async {
                loop {
                    let which = &watching[far.random() as usize % watching.len()];
                    which.hang(true);
                    sleep(Duration::from_millis(far.random() % 2500)).await;
                    which.hang(false);
                    sleep(Duration::from_millis(far.random() % 2500)).await;
                }
            };
            let all = async {
                while let Some(done) = work.join_next().await {
                    done.expect("no answer is too old")
                }
            };
            tokio::select! { () = all => (), () = hanging => () }
            clients.iter().map(MetaSession::remembered).sum::<u64>()
        });
    }
    assert!(remembered > 1000, "{remembered} answers were from memory");
}

/// Reads any file, and writes the one with its own number.
async fn read_and_write(far: Arc<Far>, client: MetaSession, files: Arc<Vec<(InodeId, AtomicU64)>>, own: usize) {
    for _ in 0..300 {
        let at = far.random() as usize % (files.len() + 1);
        let (ino, acknowledged) = files.get(at).or(files.get(own)).unwrap_or(&files[0]);
        let floor = acknowledged.load(Ordering::Relaxed);
        if at == files.len() && own < files.len() {
            let mtime = Some(SetTime::At(Timestamp { seconds: floor as i64 + 1, nanos: 0 }));
            client.set_attr(*ino, AttrChange { mtime, ..AttrChange::default() }).await.expect("sets");
            acknowledged.store(floor + 1, Ordering::Relaxed);
        } else {
            let now = client.attr(*ino).await.expect("is there").mtime.seconds as u64;
            assert!(now >= floor, "{now} after {floor} was acknowledged");
        }
        sleep(Duration::from_micros(far.random() % 20_000)).await;
    }
}
