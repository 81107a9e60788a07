//! What an engine makes of a log that it cannot go on from.

use raft::eraftpb::{Entry, EntryType, MessageType};

use super::*;

fn start(state: GroupState) -> Result<Engine, Fault> {
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    Engine::new(&settings(1, 1, &[1, 2, 3]), opening(state), storage::memory::open().reader, &logger)
}

/// raft-rs would panic.
#[test]
fn a_log_that_ends_before_what_was_committed_is_refused() {
    for commit in [BOOTSTRAP.0 - 1, BOOTSTRAP.0 + 1] {
        let mut state = bootstrap();
        state.hard_state.commit = commit;
        let fault = start(state).err();
        assert!(matches!(fault, Some(Fault::Commit { commit: found, .. }) if found == commit), "{fault:?}");
    }
    assert!(start(bootstrap()).is_ok());
}

/// Nobody writes changes of the first kind. One without data must not pass for the first entry of a term.
#[test]
fn an_entry_of_another_type_stops_the_node_though_it_is_empty() {
    for entry_type in [EntryType::EntryConfChange as i32] {
        let mut world = World::led_by(2, 3);
        let status = world.machine(1).engine.status();
        let (term, index) = (status.term, status.last_index + 1);
        let entries = vec![Entry { index, term, entry_type, ..Default::default() }];
        let log_term = term;
        let mut append =
            Message { from: 2, to: 1, term, log_term, index: index - 1, commit: index, entries, ..Default::default() };
        append.set_msg_type(MessageType::MsgAppend);
        world.machine(1).engine.handle_message(2, append).unwrap();
        let mut fault = None;
        for _ in 0..4 {
            match world.machine(1).engine.poll(Now::default()) {
                Ok(effects) => effects.iter().for_each(|effect| {
                    if let Effect::Persist(persist) = effect {
                        world.machine(1).engine.handle_persisted(persist.number);
                    }
                }),
                Err(stopped) => fault = fault.or(Some(stopped)),
            }
        }
        assert!(matches!(fault, Some(Fault::Unknown { index: at, .. }) if at == index), "{fault:?}");
    }
}
