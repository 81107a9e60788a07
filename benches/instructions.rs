//! Counts the instructions of the hot paths and compares them with `instructions.txt` (`make instructions`).
//!
//! A clock says little on a machine that others use; a count hardly changes. Each path runs in a process of its own, which
//! is warmed up at full speed and then single-stepped (ptrace) through one batch: that needs no counters of the
//! processor, which virtual machines tend to hide, and no package such as valgrind.
//!
//! Only the process's first thread is counted. With `--write` the counts become the committed ones.

#![allow(clippy::expect_used, clippy::panic)] // a measurement that cannot go on ends

mod hot;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use hot::engines::Engines;
use hot::frames::Frames;
use hot::logs::Log;
use hot::queues::Queues;

/// Entries in the batch that is counted.
const ENTRIES: u64 = 32;
/// Batches before it.
const WARM_UP: usize = 50;
/// More than so many per cent above the committed count is an error. Up to five come and go with what the compiler inlines
/// when code elsewhere changes.
const TOLERANCE_PERCENT: f64 = 10.0;

/// Tells a child that it is traced.
const COUNTED: &str = "--counted";
const BEGIN: i32 = libc::SIGUSR1;
const END: i32 = libc::SIGUSR2;

/// Whatever the processor, the C library copies in the same way; `rep movsb` would count once a byte.
const SAME_EVERYWHERE: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-FSRM";

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

type Path = (&'static str, &'static str, fn());

const PATHS: [Path; 5] = [
    ("propose", "propose to applied, three engines", || {
        let mut engines = Engines::new(3);
        count(|| engines.propose(ENTRIES));
    }),
    ("drain", "through the bridge's two queues, without Python", || {
        let mut queues = Queues::new();
        count(|| black_box(queues.cross(ENTRIES)));
    }),
    ("encode", "into a frame", || {
        let mut frames = Frames::new(ENTRIES);
        count(|| black_box(frames.encode()));
    }),
    ("decode", "out of a frame", || {
        let frames = Frames::new(ENTRIES);
        count(|| black_box(frames.decode()));
    }),
    ("append", "into the log, durable", || {
        let mut log = Log::new();
        count(|| log.append(ENTRIES));
    }),
];

fn main() -> ExitCode {
    let arguments = std::env::args().collect::<Vec<_>>();
    if let [_, flag, name, ..] = arguments.as_slice() {
        if flag == "--run" {
            let (_, _, run) = PATHS.iter().find(|(known, _, _)| known == name).expect("a known path");
            run();
            return ExitCode::SUCCESS;
        }
    }
    let counted = match PATHS.map(|(name, _, _)| counted(name)).into_iter().collect::<io::Result<Vec<_>>>() {
        Ok(counted) => counted,
        Err(error) => {
            eprintln!("instructions cannot be counted: {error}; allow a process to trace its child (ptrace)");
            return ExitCode::FAILURE;
        }
    };
    if arguments.iter().any(|argument| argument == "--write") {
        write(&counted);
    }
    compare(&counted)
}

/// In the child: runs, warm, what is to be counted between two signals. A profiler's gets none.
fn count<T>(mut run: impl FnMut() -> T) {
    let is_counted = std::env::args().any(|argument| argument == COUNTED);
    let signal = |number| {
        if is_counted {
            // SAFETY: it takes a number; the tracer keeps the signal to itself.
            unsafe { libc::raise(number) };
        }
    };
    for _ in 0..WARM_UP {
        run();
    }
    signal(BEGIN);
    run();
    signal(END);
}

/// In the parent: the instructions an entry takes on this path.
fn counted(name: &str) -> io::Result<u64> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--run", name, COUNTED]).env("GLIBC_TUNABLES", SAME_EVERYWHERE);
    // SAFETY: between fork and exec there is this one system call.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    wait(pid)?; // at its exec
    go_on(pid, libc::PTRACE_CONT, 0)?;
    while let Some(signal) = wait(pid)?.filter(|signal| *signal != BEGIN) {
        go_on(pid, libc::PTRACE_CONT, signal)?;
    }
    let mut steps = 0;
    loop {
        go_on(pid, libc::PTRACE_SINGLESTEP, 0)?;
        match wait(pid)? {
            Some(libc::SIGTRAP) => steps += 1,
            Some(END) => break,
            Some(other) => return Err(io::Error::other(format!("{name} got signal {other}"))),
            None => return Err(io::Error::other(format!("{name} ended before it was counted"))),
        }
    }
    child.kill()?;
    child.wait()?;
    Ok(steps / ENTRIES)
}

fn go_on(pid: i32, how: libc::c_uint, signal: i32) -> io::Result<()> {
    // SAFETY: the child is stopped, and no memory is handed over.
    match unsafe { libc::ptrace(how, pid, 0, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The signal that the child has stopped at; `None` when it has ended.
fn wait(pid: i32) -> io::Result<Option<i32>> {
    let mut status = 0;
    // SAFETY: `status` is ours.
    match unsafe { libc::waitpid(pid, &mut status, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status))),
    }
}

/// Counts that were committed, of this architecture, by their names.
fn committed() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = lines.filter(|words| words.first() == Some(&std::env::consts::ARCH));
    ours.filter_map(|words| Some((words.get(1)?.to_string(), words.get(2)?.parse().ok()?))).collect()
}

fn write(counted: &[u64]) {
    let text = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    let others = text.lines().filter(|line| !line.starts_with(std::env::consts::ARCH));
    let mut text = others.fold(String::new(), |text, line| text + line + "\n");
    for ((name, _, _), count) in PATHS.iter().zip(counted) {
        let _ = writeln!(text, "{} {name} {count}", std::env::consts::ARCH);
    }
    std::fs::write(COMMITTED, text).expect("instructions.txt can be written");
}

fn compare(counted: &[u64]) -> ExitCode {
    let committed = committed();
    let mut has_grown = false;
    println!("{:<8}{:>14}{:>11}{:>9}", "", "instructions", "committed", "change");
    for ((name, what, _), count) in PATHS.iter().zip(counted) {
        let Some(before) = committed.get(*name) else {
            println!("{name:<8}{count:>14}{:>11}{:>9}  {what}", "-", "");
            continue;
        };
        let change = (*count as f64 / *before as f64 - 1.0) * 100.0;
        has_grown |= change > TOLERANCE_PERCENT;
        println!("{name:<8}{count:>14}{before:>11}{change:>+8.1}%  {what}");
    }
    println!("each for one of {ENTRIES} entries of a batch");
    if committed.is_empty() {
        println!("there are no committed counts for {}: `make instructions ARGS=--write`", std::env::consts::ARCH);
    }
    if has_grown {
        eprintln!(
            "a hot path takes over {TOLERANCE_PERCENT} % more than was committed: find out why, such as with valgrind \
             --tool=callgrind {} --run NAME; if it is worth it, commit the new count (make instructions ARGS=--write)",
            std::env::current_exe().unwrap_or_default().display()
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
