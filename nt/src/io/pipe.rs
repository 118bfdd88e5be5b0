//! Named pipes: names, instances, queues of data, and requests that wait for the other end.
//!
//! Source: the documented behaviour of CreateNamedPipe, ConnectNamedPipe and the FSCTL_PIPE_* codes. An operation is
//! *submitted* under a number; sooner or later its outcome is in [`PipeSystem::take`]. Nothing here knows of threads,
//! guest memory or file objects.

use std::collections::{BTreeMap, VecDeque};

use super::requests::{Done, RequestId, Requests};
use crate::process::ProcessId;
use crate::status::Status;

/// Which end of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that was created.
    Server,
    /// The one that was opened.
    Client,
}

impl Side {
    fn peer(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
    }
}

/// An open end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PipeEnd {
    instance: u64,
    side: Side,
    /// Which connection of the instance a client belongs to.
    connection: u64,
}

impl PipeEnd {
    /// Which end it is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }
}

/// FILE_PIPE_*_STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The server has disconnected its client.
    Disconnected = 1,
    /// A client may connect.
    Listening = 2,
    /// Both ends are there.
    Connected = 3,
    /// One end is gone.
    Closing = 4,
}

/// What NtCreateNamedPipeFile asks for.
#[derive(Clone, Copy, Debug)]
pub struct PipeParameters {
    /// Messages keep their borders.
    pub messages: bool,
    /// The server reads messages.
    pub read_messages: bool,
    /// The server's operations never wait.
    pub nonblocking: bool,
    /// Most instances.
    pub max_instances: u32,
    /// Bytes towards the server, and towards clients, that are taken without a reader.
    pub quotas: [u32; 2],
    /// Clients may write, and read.
    pub inbound: bool,
    /// See `inbound`.
    pub outbound: bool,
    /// Default timeout of FSCTL_PIPE_WAIT, as NT gives times.
    pub timeout: i64,
}

#[derive(Debug)]
struct Message {
    data: Vec<u8>,
    taken: usize,
    writer: Option<RequestId>,
}

#[derive(Debug)]
struct Reader {
    request: RequestId,
    length: usize,
}

/// Data on its way to one end.
#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    readers: VecDeque<Reader>,
    /// Waiting until everything is read.
    flushers: Vec<RequestId>,
    quota: u64,
}

impl Queue {
    fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.data.len() - message.taken).sum()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Modes {
    messages: bool,
    nonblocking: bool,
}

#[derive(Debug)]
struct Instance {
    name: String,
    state: State,
    connection: u64,
    open: [bool; 2],
    /// By the side that reads.
    queues: [Queue; 2],
    modes: [Modes; 2],
    processes: [ProcessId; 2],
    listeners: Vec<RequestId>,
    parameters: PipeParameters,
}

#[derive(Debug, Default)]
struct Pipe {
    instances: Vec<u64>,
}

/// All pipes.
#[derive(Debug, Default)]
pub struct PipeSystem {
    instances: BTreeMap<u64, Instance>,
    /// By name in capitals.
    pipes: BTreeMap<String, Pipe>,
    /// The operations, and those of mailslots and directories, which end in the same way.
    pub requests: Requests,
}

/// What FilePipeLocalInformation tells.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Parameters of its creation.
    pub parameters: PipeParameters,
    /// Instances of the name.
    pub instances: u32,
    /// Bytes that can be read.
    pub available: u32,
    /// Bytes that can be written without waiting.
    pub room: u32,
    /// State.
    pub state: State,
    /// Reads messages; never waits.
    pub modes: (bool, bool),
    /// Processes of server and client.
    pub processes: [ProcessId; 2],
}

/// What FSCTL_PIPE_PEEK tells.
#[derive(Clone, Debug)]
pub struct Peek {
    /// State.
    pub state: State,
    /// Bytes that can be read.
    pub available: u32,
    /// Messages among them (0 for a pipe of bytes).
    pub messages: u32,
    /// Bytes of the first message.
    pub message_length: u32,
    /// The first bytes.
    pub data: Vec<u8>,
}

impl PipeSystem {
    /// A number for an operation.
    pub fn request(&mut self) -> RequestId {
        self.requests.number()
    }

    fn finish(&mut self, request: RequestId, status: Status, information: u64) {
        self.requests.finish(request, Done { status, information, data: Vec::new() });
    }

    /// Whether an operation has ended.
    #[must_use]
    pub fn is_done(&self, request: RequestId) -> bool {
        self.requests.is_done(request)
    }

    /// How an operation ended, once it has.
    pub fn take(&mut self, request: RequestId) -> Option<Done> {
        self.requests.take(request)
    }

    /// Whether a name has an instance.
    #[must_use]
    pub fn exists(&self, name: &str) -> bool {
        self.pipes.contains_key(&name.to_uppercase())
    }

    /// Whether a name has as many instances as it may have.
    #[must_use]
    pub fn is_full(&self, name: &str) -> bool {
        let Some(pipe) = self.pipes.get(&name.to_uppercase()) else { return false };
        let first = pipe.instances.first().and_then(|id| self.instances.get(id));
        first.is_some_and(|first| pipe.instances.len() as u64 >= u64::from(first.parameters.max_instances))
    }

    /// Makes an instance; with an empty name one that only [`PipeSystem::connect_to`] reaches.
    pub fn create(&mut self, name: &str, parameters: PipeParameters, process: ProcessId) -> Result<PipeEnd, Status> {
        let name = name.to_uppercase();
        let id = self.request();
        let siblings = self.pipes.get(&name).map_or(&[][..], |pipe| &pipe.instances);
        let first = siblings.first().and_then(|id| self.instances.get(id));
        if let Some(first) = first {
            let of_first = &first.parameters;
            if siblings.len() as u64 >= u64::from(of_first.max_instances) {
                return Err(Status::INSTANCE_NOT_AVAILABLE);
            }
            if (of_first.inbound, of_first.outbound) != (parameters.inbound, parameters.outbound) {
                return Err(Status::ACCESS_DENIED);
            }
        }
        if !name.is_empty() {
            self.pipes.entry(name.clone()).or_default().instances.push(id);
        }
        let [inbound, outbound] = parameters.quotas.map(u64::from);
        self.instances.insert(
            id,
            Instance {
                name,
                state: State::Listening,
                connection: 0,
                open: [true, false],
                queues: [Queue { quota: inbound, ..Queue::default() }, Queue { quota: outbound, ..Queue::default() }],
                modes: [
                    Modes { messages: parameters.read_messages, nonblocking: parameters.nonblocking },
                    Modes::default(),
                ],
                processes: [process, 0],
                listeners: Vec::new(),
                parameters,
            },
        );
        Ok(PipeEnd { instance: id, side: Side::Server, connection: 0 })
    }

    /// Whether a client can connect now.
    pub fn is_available(&self, name: &str) -> Result<bool, Status> {
        let pipe = self.pipes.get(&name.to_uppercase()).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
        Ok(self.listening(pipe).is_some())
    }

    fn listening(&self, pipe: &Pipe) -> Option<u64> {
        let listens = |id: &&u64| self.instances.get(id).is_some_and(|i| i.state == State::Listening);
        let expects = |id: &&u64| self.instances.get(id).is_some_and(|i| !i.listeners.is_empty());
        let all = || pipe.instances.iter().filter(listens);
        all().find(expects).or_else(|| all().next()).copied()
    }

    /// Connects a client to a listening instance of a name.
    pub fn connect(&mut self, name: &str, process: ProcessId, reads: bool, writes: bool) -> Result<PipeEnd, Status> {
        let pipe = self.pipes.get(&name.to_uppercase()).ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
        let id = self.listening(pipe).ok_or(Status::PIPE_NOT_AVAILABLE)?;
        self.connect_instance(id, process, reads, writes)
    }

    /// Connects a client to the instance of a server end.
    pub fn connect_to(
        &mut self,
        server: PipeEnd,
        process: ProcessId,
        reads: bool,
        writes: bool,
    ) -> Result<PipeEnd, Status> {
        let listening = self.instances.get(&server.instance).is_some_and(|i| i.state == State::Listening);
        if !listening || server.side != Side::Server {
            return Err(Status::PIPE_NOT_AVAILABLE);
        }
        self.connect_instance(server.instance, process, reads, writes)
    }

    fn connect_instance(&mut self, id: u64, process: ProcessId, reads: bool, writes: bool) -> Result<PipeEnd, Status> {
        let instance = self.instances.get_mut(&id).ok_or(Status::PIPE_NOT_AVAILABLE)?;
        if reads && !instance.parameters.outbound || writes && !instance.parameters.inbound {
            return Err(Status::ACCESS_DENIED);
        }
        instance.state = State::Connected;
        instance.connection += 1;
        instance.open[Side::Client as usize] = true;
        instance.modes[Side::Client as usize] = Modes::default();
        instance.processes[Side::Client as usize] = process;
        let end = PipeEnd { instance: id, side: Side::Client, connection: instance.connection };
        for request in std::mem::take(&mut instance.listeners) {
            self.finish(request, Status::SUCCESS, 0);
        }
        Ok(end)
    }

    /// The instance of an end that is still connected to it.
    fn instance(&mut self, end: PipeEnd) -> Result<&mut Instance, Status> {
        let instance = self.instances.get_mut(&end.instance).ok_or(Status::PIPE_DISCONNECTED)?;
        if end.side == Side::Client && end.connection != instance.connection {
            return Err(Status::PIPE_DISCONNECTED);
        }
        Ok(instance)
    }

    /// Waits for a client.
    pub fn listen(&mut self, end: PipeEnd, request: RequestId) -> Result<(), Status> {
        if end.side == Side::Client {
            return Err(Status::ILLEGAL_FUNCTION);
        }
        let instance = self.instance(end)?;
        match instance.state {
            State::Connected => return Err(Status::PIPE_CONNECTED),
            State::Closing => return Err(Status::PIPE_CLOSING),
            State::Disconnected | State::Listening => instance.state = State::Listening,
        }
        if instance.modes[Side::Server as usize].nonblocking {
            return Err(Status::PIPE_LISTENING);
        }
        instance.listeners.push(request);
        Ok(())
    }

    /// Lets go of the client; what it has not read is lost.
    pub fn disconnect(&mut self, end: PipeEnd) -> Result<(), Status> {
        if end.side == Side::Client {
            return Err(Status::ILLEGAL_FUNCTION);
        }
        let instance = self.instance(end)?;
        if instance.state == State::Disconnected {
            return Err(Status::PIPE_DISCONNECTED);
        }
        instance.state = State::Disconnected;
        instance.connection += 1;
        instance.open[Side::Client as usize] = false;
        let mut ended = std::mem::take(&mut instance.listeners);
        for queue in &mut instance.queues {
            ended.extend(queue.readers.drain(..).map(|reader| reader.request));
            ended.extend(queue.messages.drain(..).filter_map(|message| message.writer));
            ended.append(&mut queue.flushers);
        }
        for request in ended {
            self.finish(request, Status::PIPE_DISCONNECTED, 0);
        }
        Ok(())
    }

    fn check_connected(state: State) -> Result<(), Status> {
        match state {
            State::Disconnected => Err(Status::PIPE_DISCONNECTED),
            State::Listening => Err(Status::PIPE_LISTENING),
            State::Connected | State::Closing => Ok(()),
        }
    }

    /// Whether an end may ask and be answered in one operation.
    pub fn check_transceive(&mut self, end: PipeEnd) -> Result<(), Status> {
        let instance = self.instance(end)?;
        if instance.state != State::Connected {
            return Err(Status::INVALID_PIPE_STATE);
        }
        if !instance.modes[end.side as usize].messages {
            return Err(Status::INVALID_READ_MODE);
        }
        let queue = &instance.queues[end.side as usize];
        if !queue.messages.is_empty() || !queue.readers.is_empty() {
            return Err(Status::PIPE_BUSY);
        }
        Ok(())
    }

    /// Reads up to `length` bytes, or from one message.
    pub fn read(&mut self, end: PipeEnd, request: RequestId, length: usize) -> Result<(), Status> {
        let instance = self.instance(end)?;
        Self::check_connected(instance.state)?;
        let side = end.side as usize;
        if instance.queues[side].messages.is_empty() {
            if !instance.open[end.side.peer() as usize] {
                return Err(Status::PIPE_BROKEN);
            }
            if instance.modes[side].nonblocking {
                return Err(Status::PIPE_EMPTY);
            }
        }
        instance.queues[side].readers.push_back(Reader { request, length });
        self.pump(end.instance, end.side);
        Ok(())
    }

    /// Writes; done when the reader has taken it, or the quota has room for it.
    pub fn write(&mut self, end: PipeEnd, request: RequestId, data: Vec<u8>) -> Result<(), Status> {
        let instance = self.instance(end)?;
        Self::check_connected(instance.state)?;
        let peer = end.side.peer();
        if !instance.open[peer as usize] {
            return Err(Status::PIPE_CLOSING);
        }
        let messages = instance.parameters.messages;
        let queue = &mut instance.queues[peer as usize];
        if data.is_empty() && !messages {
            self.finish(request, Status::SUCCESS, 0);
            return Ok(());
        }
        if instance.modes[end.side as usize].nonblocking && queue.readers.is_empty() {
            // What does not fit is not written: all of a message, the rest of bytes.
            let room = (queue.quota.max(1) as usize).saturating_sub(queue.bytes());
            let length = if data.len() <= room {
                data.len()
            } else if messages {
                0
            } else {
                room
            };
            if length > 0 {
                let data = data[..length].to_vec();
                queue.messages.push_back(Message { data, taken: 0, writer: None });
            }
            self.finish(request, Status::SUCCESS, length as u64);
            return Ok(());
        }
        queue.messages.push_back(Message { data, taken: 0, writer: Some(request) });
        self.pump(end.instance, peer);
        Ok(())
    }

    /// Waits until the other end has read everything.
    pub fn flush(&mut self, end: PipeEnd, request: RequestId) -> Result<(), Status> {
        let instance = self.instance(end)?;
        let peer = end.side.peer();
        if !instance.open[peer as usize] {
            // Nobody will read, and nothing waits to be read.
            self.finish(request, Status::SUCCESS, 0);
            return Ok(());
        }
        instance.queues[peer as usize].flushers.push(request);
        self.pump(end.instance, peer);
        Ok(())
    }

    /// Brings readers and data together, and lets writers go whose data has room.
    fn pump(&mut self, id: u64, side: Side) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let by_message = instance.modes[side as usize].messages && instance.parameters.messages;
        let queue = &mut instance.queues[side as usize];
        let mut done = Vec::new();
        while !queue.messages.is_empty() {
            let Some(reader) = queue.readers.pop_front() else { break };
            let (data, more) = take(queue, reader.length, by_message, &mut done);
            let status = if more { Status::BUFFER_OVERFLOW } else { Status::SUCCESS };
            done.push((reader.request, Done { status, information: data.len() as u64, data }));
        }
        let mut waiting = 0;
        for message in &mut queue.messages {
            waiting += (message.data.len() - message.taken) as u64;
            if waiting > queue.quota {
                break;
            }
            if let Some(writer) = message.writer.take() {
                done.push((writer, written(message)));
            }
        }
        if queue.messages.is_empty() {
            let flushed = Done { status: Status::SUCCESS, information: 0, data: Vec::new() };
            done.extend(queue.flushers.drain(..).map(|request| (request, flushed.clone())));
        }
        for (request, done) in done {
            self.requests.finish(request, done);
        }
    }

    /// Looks at what can be read.
    pub fn peek(&mut self, end: PipeEnd, length: usize) -> Result<Peek, Status> {
        let instance = self.instance(end)?;
        match instance.state {
            // A client that was disconnected has no instance any more.
            State::Disconnected | State::Listening => return Err(Status::INVALID_PIPE_STATE),
            State::Connected | State::Closing => {}
        }
        let queue = &instance.queues[end.side as usize];
        if queue.messages.is_empty() && !instance.open[end.side.peer() as usize] {
            return Err(Status::PIPE_BROKEN);
        }
        let messages = instance.parameters.messages;
        let left = |message: &Message| message.data.len() - message.taken;
        // However the end reads: what is shown of a pipe of messages is from the first one.
        let shown = if messages { 1 } else { usize::MAX };
        let bytes = queue.messages.iter().take(shown).flat_map(|message| &message.data[message.taken..]);
        Ok(Peek {
            state: instance.state,
            available: queue.bytes() as u32,
            messages: if messages { queue.messages.len() as u32 } else { 0 },
            message_length: if messages { queue.messages.front().map_or(0, left) as u32 } else { 0 },
            data: bytes.take(length).copied().collect(),
        })
    }

    /// Closes an end: the other one reads what is left, and then learns of it.
    pub fn close(&mut self, end: PipeEnd) {
        let Ok(instance) = self.instance(end) else { return };
        if !instance.open[end.side as usize] {
            return;
        }
        let (side, peer) = (end.side as usize, end.side.peer() as usize);
        instance.open[side] = false;
        if instance.state == State::Connected {
            instance.state = State::Closing;
        }
        let mut done: Vec<(RequestId, Status)> = Vec::new();
        done.extend(instance.listeners.drain(..).map(|request| (request, Status::CANCELLED)));
        // What was meant for this end is lost.
        let own = &mut instance.queues[side];
        done.extend(own.readers.drain(..).map(|reader| (reader.request, Status::PIPE_BROKEN)));
        done.extend(own.messages.drain(..).filter_map(|message| message.writer).map(|w| (w, Status::PIPE_BROKEN)));
        done.extend(own.flushers.drain(..).map(|request| (request, Status::PIPE_BROKEN)));
        // Readers at the other end wait only while there is nothing to read.
        let other = &mut instance.queues[peer];
        done.extend(other.readers.drain(..).map(|reader| (reader.request, Status::PIPE_BROKEN)));
        let writers = other.messages.iter_mut().filter_map(|message| message.writer.take());
        done.extend(writers.map(|writer| (writer, Status::CANCELLED)));
        let gone = !instance.open[0] && !instance.open[1];
        let name = instance.name.clone();
        for (request, status) in done {
            self.finish(request, status, 0);
        }
        if end.side == Side::Server
            && let Some(pipe) = self.pipes.get_mut(&name)
        {
            pipe.instances.retain(|&id| id != end.instance);
            if pipe.instances.is_empty() {
                self.pipes.remove(&name);
            }
        }
        if gone {
            self.instances.remove(&end.instance);
        }
    }

    /// Takes an operation back; `false` when it has ended already.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        let mut found = false;
        for instance in self.instances.values_mut() {
            let before = instance.listeners.len();
            instance.listeners.retain(|&listener| listener != request);
            found |= instance.listeners.len() != before;
            for queue in &mut instance.queues {
                let before = queue.readers.len() + queue.flushers.len() + queue.messages.len();
                queue.readers.retain(|reader| reader.request != request);
                queue.flushers.retain(|&flusher| flusher != request);
                queue.messages.retain(|message| message.writer != Some(request));
                found |= queue.readers.len() + queue.flushers.len() + queue.messages.len() != before;
            }
        }
        if found {
            self.finish(request, Status::CANCELLED, 0);
        }
        found
    }

    /// FilePipeInformation: whether an end reads messages, and whether it never waits.
    pub fn set_modes(&mut self, end: PipeEnd, messages: bool, nonblocking: bool) -> Result<(), Status> {
        let instance = self.instance(end)?;
        if messages && !instance.parameters.messages {
            return Err(Status::INVALID_PARAMETER);
        }
        instance.modes[end.side as usize] = Modes { messages, nonblocking };
        Ok(())
    }

    /// FilePipeInformation and FilePipeLocalInformation.
    #[must_use]
    pub fn facts(&self, end: PipeEnd) -> Option<Facts> {
        let instance = self.instances.get(&end.instance)?;
        let connected = end.side == Side::Server || end.connection == instance.connection;
        let modes = instance.modes[end.side as usize];
        let outgoing = &instance.queues[end.side.peer() as usize];
        Some(Facts {
            parameters: instance.parameters,
            instances: self.pipes.get(&instance.name).map_or(1, |pipe| pipe.instances.len() as u32),
            available: instance.queues[end.side as usize].bytes() as u32,
            room: outgoing.quota.saturating_sub(outgoing.bytes() as u64) as u32,
            state: if connected { instance.state } else { State::Disconnected },
            modes: (modes.messages, modes.nonblocking),
            processes: instance.processes,
        })
    }
}

fn written(message: &Message) -> Done {
    Done { status: Status::SUCCESS, information: message.data.len() as u64, data: Vec::new() }
}

/// Takes data out of a queue: from one message, or as many bytes as there are. The flag says that a message has more.
fn take(queue: &mut Queue, length: usize, by_message: bool, done: &mut Vec<(RequestId, Done)>) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    while let Some(message) = queue.messages.front_mut() {
        let part = (length - data.len()).min(message.data.len() - message.taken);
        data.extend_from_slice(&message.data[message.taken..message.taken + part]);
        message.taken += part;
        if message.taken < message.data.len() {
            return (data, by_message);
        }
        if let Some(writer) = message.writer.take() {
            done.push((writer, written(message)));
        }
        queue.messages.pop_front();
        if by_message || data.len() == length {
            break;
        }
    }
    (data, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: PipeParameters = PipeParameters {
        messages: false,
        read_messages: false,
        nonblocking: false,
        max_instances: 2,
        quotas: [16, 16],
        inbound: true,
        outbound: true,
        timeout: 0,
    };

    fn pair(parameters: PipeParameters) -> (PipeSystem, PipeEnd, PipeEnd) {
        let mut pipes = PipeSystem::default();
        let server = pipes.create("Name", parameters, 4).unwrap();
        let client = pipes.connect("nAME", 8, true, true).unwrap();
        (pipes, server, client)
    }

    fn read(pipes: &mut PipeSystem, end: PipeEnd, length: usize) -> Result<Option<Done>, Status> {
        let request = pipes.request();
        pipes.read(end, request, length)?;
        Ok(pipes.take(request))
    }

    fn write(pipes: &mut PipeSystem, end: PipeEnd, data: &[u8]) -> Result<Option<Done>, Status> {
        let request = pipes.request();
        pipes.write(end, request, data.to_vec())?;
        Ok(pipes.take(request))
    }

    #[test]
    fn bytes_flow_and_the_end_shows_behind_the_last_one() {
        let (mut pipes, server, client) = pair(BYTES);
        let waiting = pipes.request();
        pipes.read(server, waiting, 4).unwrap();
        assert!(!pipes.is_done(waiting));
        assert_eq!(write(&mut pipes, client, b"abcdef").unwrap().unwrap().information, 6);
        assert_eq!(pipes.take(waiting).unwrap().data, b"abcd");
        write(&mut pipes, client, b"gh").unwrap();
        pipes.close(client);
        assert_eq!(read(&mut pipes, server, 10).unwrap().unwrap().data, b"efgh");
        assert_eq!(read(&mut pipes, server, 10), Err(Status::PIPE_BROKEN));
        assert_eq!(write(&mut pipes, server, b"x"), Err(Status::PIPE_CLOSING));
        pipes.close(server);
        assert!(!pipes.exists("name") && pipes.instances.is_empty());
    }

    #[test]
    fn writers_wait_for_room() {
        let (mut pipes, server, client) = pair(BYTES);
        assert!(write(&mut pipes, client, &[1; 16]).unwrap().is_some());
        let request = pipes.request();
        pipes.write(client, request, vec![2; 20]).unwrap();
        assert!(!pipes.is_done(request));
        assert_eq!(read(&mut pipes, server, 20).unwrap().unwrap().data.len(), 20);
        assert_eq!(pipes.take(request).unwrap().information, 20);
        assert_eq!(read(&mut pipes, server, 20).unwrap().unwrap().data, [2; 16]);
    }

    #[test]
    fn messages_keep_their_borders() {
        let (mut pipes, server, client) =
            pair(PipeParameters { messages: true, read_messages: true, quotas: [100, 100], ..BYTES });
        write(&mut pipes, client, b"first").unwrap();
        write(&mut pipes, client, b"second").unwrap();
        let peek = pipes.peek(server, 3).unwrap();
        assert_eq!((peek.available, peek.messages, peek.message_length, &peek.data[..]), (11, 2, 5, &b"fir"[..]));
        let part = read(&mut pipes, server, 3).unwrap().unwrap();
        assert_eq!((part.status, &part.data[..]), (Status::BUFFER_OVERFLOW, &b"fir"[..]));
        assert_eq!(read(&mut pipes, server, 30).unwrap().unwrap().data, b"st");
        assert_eq!(read(&mut pipes, server, 30).unwrap().unwrap().data, b"second");
    }

    #[test]
    fn instances_listen_connect_and_disconnect() {
        let mut pipes = PipeSystem::default();
        assert_eq!(pipes.connect("p", 8, true, true), Err(Status::OBJECT_NAME_NOT_FOUND));
        let server = pipes.create("p", BYTES, 4).unwrap();
        let listen = pipes.request();
        pipes.listen(server, listen).unwrap();
        let client = pipes.connect("p", 8, true, true).unwrap();
        assert_eq!(pipes.take(listen).unwrap().status, Status::SUCCESS);
        assert_eq!(pipes.connect("p", 8, true, true), Err(Status::PIPE_NOT_AVAILABLE));
        assert_eq!(pipes.listen(server, 99), Err(Status::PIPE_CONNECTED));
        pipes.disconnect(server).unwrap();
        assert_eq!(read(&mut pipes, client, 1), Err(Status::PIPE_DISCONNECTED));
        pipes.listen(server, 100).unwrap();
        let second = pipes.connect("p", 8, true, true).unwrap();
        assert_eq!(write(&mut pipes, client, b"x"), Err(Status::PIPE_DISCONNECTED));
        pipes.close(client);
        assert!(write(&mut pipes, second, b"x").unwrap().is_some(), "the old client's end closed nothing");
        pipes.create("p", BYTES, 4).unwrap();
        assert_eq!(pipes.create("p", BYTES, 4), Err(Status::INSTANCE_NOT_AVAILABLE));
    }

    #[test]
    fn a_flush_ends_at_once_where_nobody_will_read() {
        let (mut pipes, server, client) = pair(BYTES);
        write(&mut pipes, server, b"abc").unwrap();
        let waiting = pipes.request();
        pipes.flush(server, waiting).unwrap();
        assert!(!pipes.is_done(waiting));
        pipes.close(client);
        assert_eq!(pipes.take(waiting).unwrap().status, Status::PIPE_BROKEN);
        let late = pipes.request();
        pipes.flush(server, late).unwrap();
        assert_eq!(pipes.take(late).unwrap().status, Status::SUCCESS);
        assert_eq!(pipes.flush(client, late), Ok(()), "closed, but of this connection");
        pipes.take(late);
        pipes.disconnect(server).unwrap();
        pipes.flush(server, late).unwrap();
        assert_eq!(pipes.take(late).unwrap().status, Status::SUCCESS);
        assert_eq!(pipes.flush(client, late), Err(Status::PIPE_DISCONNECTED));
    }

    #[test]
    fn a_look_at_messages_shows_the_first_one_even_to_a_reader_of_bytes() {
        let (mut pipes, server, client) = pair(PipeParameters { messages: true, quotas: [100, 100], ..BYTES });
        write(&mut pipes, client, b"first").unwrap();
        write(&mut pipes, client, b"second").unwrap();
        let peek = pipes.peek(server, 100).unwrap();
        assert_eq!((peek.available, &peek.data[..]), (11, &b"first"[..]));
        assert_eq!(read(&mut pipes, server, 30).unwrap().unwrap().data, b"firstsecond");
    }

    #[test]
    fn cancelled_requests_take_nothing() {
        let (mut pipes, server, client) = pair(BYTES);
        let request = pipes.request();
        pipes.read(server, request, 4).unwrap();
        assert!(pipes.cancel(request) && !pipes.cancel(request));
        assert_eq!(pipes.take(request).unwrap().status, Status::CANCELLED);
        write(&mut pipes, client, b"abc").unwrap();
        assert_eq!(read(&mut pipes, server, 4).unwrap().unwrap().data, b"abc");
    }
}
