//! A pickle reader for state dicts: it builds data and runs nothing.
//!
//! Python's `pickle.load` calls whatever a file names. Here a name outside [`Global`] and an opcode
//! outside the few that `torch.save` needs (protocol 2) are errors, and the only calls are the rebuilding
//! of tensors and `OrderedDict()`. Of a TorchScript archive the modules are read as well, as names and attributes: no
//! class is looked up and no method of one is there. Values live in one flat arena, so that neither deep nor cyclic input
//! can overflow the stack, and their number is bounded.
//!
//! Opcodes: CPython, `Lib/pickletools.py`. Names and argument lists: PyTorch, `torch/_utils.py`
//! (`_rebuild_tensor_v2`) and `torch/serialization.py` (persistent ids).

use std::collections::HashMap;

/// Values per pickle; the published Inception has 8 000.
const MOST_VALUES: usize = 1 << 22;

/// Dimensions per tensor; PyTorch's own bound.
const MOST_DIMENSIONS: usize = 64;

/// Messages are completed with the file's name further up.
pub(crate) type Parsed<T> = Result<T, String>;

/// Element types of storages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Kind {
    fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes per element.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Name in the manner of safetensors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }
}

/// Where a tensor's elements lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) kind: Kind,
    /// Key of the storage.
    pub(crate) storage: String,
    /// Elements of the storage.
    pub(crate) storage_len: usize,
    /// In elements.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// In elements, one per side.
    pub(crate) strides: Vec<usize>,
}

/// The names that may be looked up.
#[derive(Clone, Copy, Debug)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Kind),
    /// The type of a module or of another object, in TorchScript archives.
    Class,
    /// What wraps lists and dicts there, whose content is of no use here.
    Wrapper,
}

impl Global {
    fn find(module: &str, name: &str, form: Form) -> Parsed<Self> {
        match (module, name) {
            (class, _) if form == Form::Script && (class == "__torch__" || class.starts_with("__torch__.")) => Ok(Self::Class),
            ("torch.jit._pickle", "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist" | "restore_type_tag")
                if form == Form::Script =>
            {
                Ok(Self::Wrapper)
            }
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Self::RebuildParameter),
            ("torch", class) => Kind::of_storage(class).map(Self::Storage).ok_or(()),
            _ => Err(()),
        }
        .map_err(|()| format!("refused the name {module}.{name}, which no state dict needs"))
    }
}

/// What a pickle is expected to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Data: a state dict, a list of keys.
    Data,
    /// The modules of a TorchScript archive.
    Script,
}

/// Index into the arena.
pub(crate) type Id = usize;

#[derive(Debug)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(GlobalName),
    Storage(&'a str),
    Tensor(Box<Slot>),
    /// A TorchScript module and its attributes, which come after it.
    Object(Option<Vec<(Id, Id)>>),
    /// Something else that TorchScript modules have: a number, a list, a dict.
    Other,
}

/// Keeps [`Global`] private.
#[derive(Debug)]
pub(crate) struct GlobalName(Global);

/// A pickle's values.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
    /// Element type and number of elements of every storage referred to.
    pub(crate) storages: HashMap<&'a str, (Kind, usize)>,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that starts where `bytes` stands, and leaves `bytes` behind it.
    pub(crate) fn read(bytes: &mut Bytes<'a>) -> Parsed<Self> {
        Self::read_as(Form::Data, bytes)
    }

    /// [`read`](Self::read) of what is expected to be of this form.
    pub(crate) fn read_as(form: Form, bytes: &mut Bytes<'a>) -> Parsed<Self> {
        let (values, stack, marks) = (Vec::new(), Vec::new(), Vec::new());
        let mut machine = Machine { form, bytes, values, stack, marks, memo: HashMap::new(), storages: HashMap::new() };
        loop {
            let at = machine.bytes.at;
            if machine.step().map_err(|message| format!("pickle, byte {at}: {message}"))? {
                break;
            }
        }
        let Machine { values, stack, storages, .. } = machine;
        match stack[..] {
            [root] => Ok(Self { values, root, storages }),
            _ => Err(format!("pickle ends with {} values on its stack, expected 1", stack.len())),
        }
    }

    pub(crate) fn root(&self) -> &Value<'a> {
        &self.values[self.root]
    }

    pub(crate) fn root_id(&self) -> Id {
        self.root
    }

    pub(crate) fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }
}

/// Bytes with a position.
#[derive(Debug)]
pub(crate) struct Bytes<'a> {
    pub(crate) all: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Parsed<&'a [u8]> {
        let rest = &self.all[self.at..];
        let taken = rest.get(..n).ok_or_else(|| format!("needs {n} bytes, {} are left", rest.len()))?;
        self.at += n;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        self.take(N).map(|taken| taken.try_into().expect("N bytes were taken"))
    }

    fn line(&mut self) -> Parsed<&'a str> {
        let end = self.all[self.at..].iter().position(|b| *b == b'\n').ok_or("a name without an end")?;
        let line = text(self.take(end)?)?;
        self.take(1).map(|_| line)
    }
}

fn text(bytes: &[u8]) -> Parsed<&str> {
    std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8".to_owned())
}

struct Machine<'a, 'b> {
    form: Form,
    bytes: &'b mut Bytes<'a>,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    storages: HashMap<&'a str, (Kind, usize)>,
}

impl<'a> Machine<'a, '_> {
    /// Runs one opcode; whether it was the last.
    fn step(&mut self) -> Parsed<bool> {
        let [opcode] = self.bytes.array()?;
        if let Some(value) = self.leaf(opcode)? {
            self.push(value)?;
            return Ok(false);
        }
        if self.gather(opcode)? {
            return Ok(false);
        }
        match opcode {
            0x80 => {
                let [protocol] = self.bytes.array()?;
                if protocol != 2 {
                    return Err(format!("pickle protocol {protocol}, expected 2"));
                }
            }
            b'.' => return Ok(true),
            b'q' => {
                let [key] = self.bytes.array()?;
                self.put(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.bytes.array()?);
                self.put(key)?;
            }
            b'h' => {
                let [key] = self.bytes.array()?;
                self.get(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.bytes.array()?);
                self.get(key)?;
            }
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            0x81 if self.form == Form::Script => {
                let arguments = self.pop()?;
                let class = self.pop()?;
                match (&self.values[class], &self.values[arguments]) {
                    (Value::Global(GlobalName(Global::Class)), Value::Tuple(none)) if none.is_empty() => self.push(Value::Object(None))?,
                    _ => return Err("an object of something other than a TorchScript class".into()),
                }
            }
            b'b' => self.build()?,
            _ => return Err(format!("refused opcode {}", opcode_name(opcode))),
        }
        Ok(false)
    }

    /// The value of an opcode that makes one of the bytes behind it alone.
    fn leaf(&mut self, opcode: u8) -> Parsed<Option<Value<'a>>> {
        let value = match opcode {
            b'N' => Value::None,
            b'G' if self.form == Form::Script => {
                self.bytes.take(8)?;
                Value::Other
            }
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'K' => {
                let [v] = self.bytes.array()?;
                Value::Int(v.into())
            }
            b'M' => Value::Int(u16::from_le_bytes(self.bytes.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.bytes.array()?).into()),
            0x8a => {
                let [n] = self.bytes.array()?;
                let digits = self.bytes.take(n.into())?;
                if n > 8 {
                    return Err(format!("an integer of {n} bytes, expected at most 8"));
                }
                let negative = digits.last().is_some_and(|b| b >> 7 == 1);
                let mut word = [if negative { 0xff } else { 0 }; 8];
                word[..digits.len()].copy_from_slice(digits);
                Value::Int(i64::from_le_bytes(word))
            }
            b'X' => {
                let n = u32::from_le_bytes(self.bytes.array()?) as usize;
                Value::Text(text(self.bytes.take(n)?)?)
            }
            b'c' => {
                let (module, name) = (self.bytes.line()?, self.bytes.line()?);
                Value::Global(GlobalName(Global::find(module, name, self.form)?))
            }
            _ => return Ok(None),
        };
        Ok(Some(value))
    }

    /// Tuples, lists and dicts: makes and fills them. Whether the opcode was one of theirs.
    fn gather(&mut self, opcode: u8) -> Parsed<bool> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x84..opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Tuple(items))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn push(&mut self, value: Value<'a>) -> Parsed<()> {
        if self.values.len() >= MOST_VALUES {
            return Err(format!("more than {MOST_VALUES} values"));
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    /// Never takes what lies below an open mark.
    fn pop(&mut self) -> Parsed<Id> {
        self.top()?;
        Ok(self.stack.pop().expect("there is a top"))
    }

    fn top(&self) -> Parsed<Id> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.marks.last().copied().unwrap_or(0) => Ok(*id),
            _ => Err("the stack is empty".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Parsed<Vec<Id>> {
        let mark = self.marks.pop().ok_or("no mark is open")?;
        Ok(self.stack.split_off(mark))
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Parsed<()> {
        let top = self.top()?;
        match &mut self.values[top] {
            Value::List(list) => list.extend(items),
            _ => return Err("appending to something other than a list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Parsed<()> {
        let top = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without a value".into()) };
        match &mut self.values[top] {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => return Err("setting an item of something other than a dict".into()),
        }
        Ok(())
    }

    fn put(&mut self, key: u32) -> Parsed<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, key: u32) -> Parsed<()> {
        let id = *self.memo.get(&key).ok_or_else(|| format!("memo {key} was never put"))?;
        // Each reference costs a byte or two of file, so the stack stays in proportion to it.
        self.stack.push(id);
        Ok(())
    }

    /// `('storage', class, key, location, elements)`, in old files with a sixth entry for views.
    fn persistent(&mut self) -> Parsed<()> {
        let id = self.pop()?;
        let Value::Tuple(items) = &self.values[id] else { return Err("a persistent id that is not a tuple".into()) };
        let items: Vec<&Value<'_>> = items.iter().take(7).map(|id| &self.values[*id]).collect();
        let (key, kind, len) = match items[..] {
            [
                Value::Text("storage"),
                Value::Global(GlobalName(Global::Storage(kind))),
                Value::Text(key),
                Value::Text(_),
                Value::Int(len),
            ]
            | [
                Value::Text("storage"),
                Value::Global(GlobalName(Global::Storage(kind))),
                Value::Text(key),
                Value::Text(_),
                Value::Int(len),
                Value::None,
            ] => (*key, *kind, *len),
            _ => return Err("a persistent id other than a storage's".into()),
        };
        let len = usize::try_from(len).map_err(|_| format!("storage {key} of {len} elements"))?;
        let declared = *self.storages.entry(key).or_insert((kind, len));
        if declared != (kind, len) {
            let ((kind, len), (other, found)) = (declared, (kind, len));
            return Err(format!("storage {key} is {}[{len}] and {}[{found}]", kind.name(), other.name()));
        }
        self.push(Value::Storage(key))
    }

    /// Gives the value on top its state.
    fn build(&mut self) -> Parsed<()> {
        let state = self.pop()?;
        let top = self.top()?;
        match (&self.values[top], &self.values[state]) {
            // A state dict's `_metadata`: versions of modules, of no use here.
            (Value::Dict(_), Value::Dict(_)) => return Ok(()),
            (Value::Object(None), _) => {}
            (Value::Object(Some(_)), _) => return Err("a second BUILD of an object".into()),
            _ => return Err("BUILD of something other than an OrderedDict".into()),
        }
        // Moved, so that many objects with one dict take no more than one. Another state only the object's program understands.
        let attributes = match &mut self.values[state] {
            Value::Dict(attributes) => std::mem::take(attributes),
            _ => Vec::new(),
        };
        self.values[top] = Value::Object(Some(attributes));
        Ok(())
    }

    fn reduce(&mut self) -> Parsed<()> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let (Value::Global(GlobalName(global)), Value::Tuple(arguments)) = (&self.values[callee], &self.values[arguments]) else {
            return Err("a call of something other than a name with a tuple".into());
        };
        match (global, &arguments[..]) {
            (Global::Wrapper, _) => self.push(Value::Other),
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            // Storage, offset, size, stride, requires_grad, backward_hooks and, lately, metadata.
            (Global::RebuildTensor, &[storage, offset, size, stride, _, _] | &[storage, offset, size, stride, _, _, _]) => {
                let slot = self.slot(storage, offset, size, stride)?;
                self.push(Value::Tensor(Box::new(slot)))
            }
            (Global::RebuildParameter, &[tensor, _, _]) if matches!(self.values[tensor], Value::Tensor(_)) => {
                self.stack.push(tensor);
                Ok(())
            }
            _ => Err(format!("a call of {global:?} with {} arguments", arguments.len())),
        }
    }

    fn slot(&self, storage: Id, offset: Id, size: Id, stride: Id) -> Parsed<Slot> {
        let (&Value::Storage(key), Value::Int(offset)) = (&self.values[storage], &self.values[offset]) else {
            return Err("a tensor without a storage or an offset".into());
        };
        let (shape, strides) = (self.sizes(size)?, self.sizes(stride)?);
        let (kind, storage_len) = self.storages[key];
        let offset = usize::try_from(*offset).map_err(|_| format!("a tensor's offset is {offset}"))?;
        if shape.len() != strides.len() {
            return Err(format!("a tensor of {} sides and {} strides", shape.len(), strides.len()));
        }
        let fits = crate::raw::end(&shape, &strides, offset).is_some_and(|end| end <= storage_len);
        // More elements than the storage has would be a broadcast view, which could ask for any memory.
        let proper = crate::raw::count(&shape).is_some_and(|n| n <= storage_len);
        if !fits || !proper {
            return Err(format!(
                "a tensor of shape {shape:?}, strides {strides:?} and offset {offset} does not fit into its storage of {storage_len} elements"
            ));
        }
        Ok(Slot { kind, storage: key.to_owned(), storage_len, offset, shape, strides })
    }

    fn sizes(&self, id: Id) -> Parsed<Vec<usize>> {
        let Value::Tuple(items) = &self.values[id] else { return Err("a tensor's sizes are not a tuple".into()) };
        if items.len() > MOST_DIMENSIONS {
            return Err(format!("a tensor of {} dimensions", items.len()));
        }
        let size = |id: &Id| match self.values[*id] {
            Value::Int(v) => usize::try_from(v).map_err(|_| format!("a tensor's side or stride is {v}")),
            _ => Err("a tensor's side or stride is not an integer".into()),
        };
        items.iter().map(size).collect()
    }
}

/// CPython's name of an opcode that is not accepted.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'F' => "FLOAT",
        b'G' => "BINFLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        b'd' => "DICT",
        b'g' => "GET",
        b'i' => "INST",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x81 => "NEWOBJ",
        0x82..=0x84 => "EXT",
        0x8b => "LONG4",
        0x8c => "SHORT_BINUNICODE",
        0x8d => "BINUNICODE8",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        0x95 => "FRAME",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{opcode:#04x}, which is none of pickle's"),
    };
    format!("{name} ({opcode:#04x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Parsed<Pickle<'_>> {
        Pickle::read(&mut Bytes { all: bytes, at: 0 })
    }

    #[test]
    fn names_and_opcodes_outside_the_list_are_refused_by_name() {
        let cases: [(&[u8], &str); 9] = [
            (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", "refused the name os.system"),
            (b"\x80\x02cbuiltins\neval\n.", "refused the name builtins.eval"),
            (b"\x80\x02ctorch\nload\n.", "refused the name torch.load"),
            (b"\x80\x02ctorch.jit\nFloatStorage\n.", "refused the name torch.jit.FloatStorage"),
            (b"\x80\x02}\x81.", "byte 3: refused opcode NEWOBJ (0x81)"),
            (b"\x80\x02(S'ls'\nios\nsystem\n.", "refused opcode STRING"),
            (b"\x80\x02\xff", "0xff, which is none of pickle's"),
            (b"\x80\x04\x95", "pickle protocol 4, expected 2"),
            (b"\x80\x02}}b\x93.", "refused opcode STACK_GLOBAL"),
        ];
        for (bytes, expected) in cases {
            let message = read(bytes).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        // Modules are names and attributes; nothing is called for them either.
        let script = |bytes| Pickle::read_as(Form::Script, &mut Bytes { all: bytes, at: 0 });
        let object = script(b"\x80\x02c__torch__\nM\n)\x81}X\x01\0\0\0aK\x01sb.").unwrap();
        assert!(matches!(object.root(), Value::Object(Some(attributes)) if attributes.len() == 1));
        let cases: [(&[u8], &str); 6] = [
            (b"\x80\x02cos\nsystem\n)\x81.", "refused the name os.system"),
            (b"\x80\x02c__torch__x\nM\n)\x81.", "refused the name __torch__x.M"),
            (b"\x80\x02c__torch__\nM\n)R.", "a call of Class"),
            (b"\x80\x02c__torch__\nM\nK\x01\x85\x81.", "an object of something other than a TorchScript class"),
            (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "an object of something other than a TorchScript class"),
            (b"\x80\x02c__torch__\nM\n)\x81}b}b.", "a second BUILD of an object"),
        ];
        for (bytes, expected) in cases {
            let message = script(bytes).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn misuse_of_the_stack_is_an_error() {
        let cases: [(&[u8], &str); 12] = [
            (b"", "needs 1 bytes, 0 are left"),
            (b".", "ends with 0 values"),
            (b"NN.", "ends with 2 values"),
            (b"t", "no mark is open"),
            (b"N(\x85", "the stack is empty"),
            (b"h\x05", "memo 5 was never put"),
            (b"]NNs", "setting an item of something other than a dict"),
            (b"}(Nu", "a key without a value"),
            (b")Na", "appending to something other than a list"),
            (b"NQ", "a persistent id that is not a tuple"),
            (b"N)R", "a call of something other than a name"),
            (b"ccollections\nOrderedDict\nN\x85R", "a call of OrderedDict with 1 arguments"),
        ];
        for (bytes, expected) in cases {
            let message = read(bytes).unwrap_err();
            assert!(message.contains(expected), "{:?}: {message}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn integers_are_those_of_pickletools() {
        let cases: [(&[u8], i64); 8] = [
            (b"K\xff.", 255),
            (b"M\x01\x80.", 0x8001),
            (b"J\xfe\xff\xff\xff.", -2),
            (b"\x8a\0.", 0),
            (b"\x8a\x01\xff.", -1),
            (b"\x8a\x02\xff\0.", 255),
            (b"\x8a\x08\0\0\0\0\0\0\0\x80.", i64::MIN),
            (b"\x8a\x05\0\0\0\0\x01.", 1 << 32),
        ];
        for (bytes, expected) in cases {
            let pickle = read(bytes).unwrap();
            assert!(matches!(pickle.root(), Value::Int(v) if *v == expected), "{expected}: {:?}", pickle.root());
        }
        assert!(read(b"\x8a\x09\0\0\0\0\0\0\0\0\0.").unwrap_err().contains("9 bytes"));
    }

    /// Ten million opcodes that nest, refer to themselves or repeat: an error or a value, no stack overflow.
    #[test]
    fn deep_cyclic_and_endless_input_is_survived() {
        let mut nested = b"N".to_vec();
        nested.extend(vec![0x85; 3_000_000]);
        nested.push(b'.');
        assert!(matches!(read(&nested).unwrap().root(), Value::Tuple(items) if items.len() == 1));
        assert!(read(b"]q\0h\0a.").is_ok(), "a list in itself");
        let mut endless = vec![b'N'; MOST_VALUES + 1];
        endless.push(b'.');
        assert!(read(&endless).unwrap_err().contains("more than 4194304 values"));
    }

    /// A tensor's declaration, as `torch.save` writes it, with a storage of 6 elements.
    fn tensor(storage_len: i64, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
        let integer = |v: i64| [b"\x8a\x08".as_slice(), &v.to_le_bytes()].concat();
        let tuple = |items: &[i64]| [b"(".to_vec(), items.iter().copied().flat_map(integer).collect(), b"t".to_vec()].concat();
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x007X\x03\0\0\0cpu".to_vec(),
            integer(storage_len),
            b"NtQ".to_vec(),
            integer(offset),
            tuple(size),
            tuple(stride),
            b"\x89NtR.".to_vec(),
        ]
        .concat()
    }

    #[test]
    fn views_outside_their_storage_are_refused() {
        let good = tensor(6, 1, &[2, 2], &[3, 1]);
        let expected = Slot { kind: Kind::F32, storage: "7".into(), storage_len: 6, offset: 1, shape: vec![2, 2], strides: vec![3, 1] };
        assert!(matches!(read(&good).unwrap().root(), Value::Tensor(slot) if **slot == expected));
        assert!(read(&tensor(6, 0, &[1, 6], &[i64::MAX, 1])).is_ok(), "a side of one has any stride");
        assert!(read(&tensor(0, 0, &[i64::MAX, 0], &[1, 1])).is_ok(), "no elements");
        let bad = [
            tensor(6, 2, &[2, 2], &[3, 2]),
            tensor(6, 7, &[], &[]),
            tensor(6, 0, &[1 << 40], &[0]),
            tensor(6, 0, &[i64::MAX, i64::MAX], &[i64::MAX, 1]),
            tensor(6, i64::MAX, &[2], &[i64::MAX]),
            tensor(6, -1, &[2], &[1]),
            tensor(6, 0, &[-2], &[1]),
            tensor(6, 0, &[2], &[-1]),
            tensor(6, 0, &[2], &[1, 1]),
            tensor(-6, 0, &[2], &[1]),
            tensor(6, 0, &[1; 65], &[1; 65]),
        ];
        for bytes in bad {
            assert!(read(&bytes).is_err(), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
}
