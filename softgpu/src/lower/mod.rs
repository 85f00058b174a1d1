//! From the tree to code: names resolved, device functions inlined, instructions decoded.

mod access;
mod arithmetic;
mod asynchronous;
mod control;
mod convert;
mod half;
pub(crate) mod opcode;
mod operand;
mod scope;
mod tensor;

use std::collections::HashMap;
use std::sync::Arc;

use crate::fault::{Fault, Kind};
use crate::ir::{Code, Global, Instruction, Kernel, Module, Op, Parameter};
use crate::memory::{Memory, Order};
use crate::parse::{self, Function, Operand, Statement, Text, Variable};
use opcode::Opcode;
use scope::{Scope, Symbol};

type Result<T> = std::result::Result<T, Fault>;

/// Where shared variables begin: as on sm_90, the first KiB is the system's, so that 0 is no
/// address of a variable.
pub(crate) const SHARED_START: u32 = 1024;

/// Instructions of a kernel with everything inlined.
const MOST_INSTRUCTIONS: usize = 1 << 20;

/// Local memory of a thread, bytes: the limit of every compute capability.
const MOST_LOCAL: u32 = 512 << 10;

/// Device functions nested deeper than this are taken for a recursion.
const DEEPEST_CALL: usize = 32;

/// Reads a PTX file, places its data, decodes its kernels.
pub(crate) fn module(ptx: &str, memory: &mut Memory) -> Result<Module> {
    let text = parse::parse(ptx)?;
    let mut globals = HashMap::new();
    let result = place(&text, &mut globals, memory).and_then(|()| kernels(&text, &globals));
    match result {
        Ok(kernels) => Ok(Module { kernels, globals }),
        Err(fault) => {
            for global in globals.values() {
                // The address comes from `allocate`, so that `free` cannot fail.
                let _ = memory.free(global.address);
            }
            Err(fault)
        }
    }
}

/// Allocates and initialises the module's `.global` and `.const` variables.
fn place(text: &Text, globals: &mut HashMap<String, Global>, memory: &mut Memory) -> Result<()> {
    let data = || {
        text.variables
            .iter()
            .filter(|variable| variable.space != "shared")
    };
    for variable in data() {
        if variable.is_extern {
            return Err(malformed(
                variable.line,
                &format!("{} is undefined", variable.name),
            ));
        }
        let address = memory.allocate(variable.size.max(1))?;
        globals.insert(
            variable.name.clone(),
            Global {
                address,
                size: variable.size,
            },
        );
    }
    for variable in data() {
        let mut bytes = vec![0; variable.size as usize];
        let element = variable.element as usize;
        for (chunk, value) in bytes.chunks_mut(element.max(1)).zip(&variable.initial) {
            let value = match value {
                Operand::Integer(value) | Operand::Double(value) => *value,
                Operand::Single(bits) => u64::from(*bits),
                Operand::Name(name, offset) => globals
                    .get(name)
                    .map(|global| global.address.wrapping_add_signed(*offset))
                    .ok_or_else(|| malformed(variable.line, &format!("{name} is unknown")))?,
                _ => {
                    return Err(malformed(
                        variable.line,
                        "an initial value of no known kind",
                    ));
                }
            };
            chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
        }
        memory.write(globals[&variable.name].address, &bytes, &Order::default())?;
    }
    Ok(())
}

fn kernels(
    text: &Text,
    globals: &HashMap<String, Global>,
) -> Result<HashMap<Arc<str>, Arc<Kernel>>> {
    let functions: HashMap<&str, &Function> = text
        .functions
        .iter()
        .filter(|function| function.body.is_some())
        .map(|function| (function.name.as_str(), function))
        .collect();
    text.functions
        .iter()
        .filter(|function| function.is_entry && function.body.is_some())
        .map(|function| {
            let kernel = kernel(function, text, &functions, globals)?;
            Ok((kernel.name.clone(), Arc::new(kernel)))
        })
        .collect()
}

fn kernel(
    function: &Function,
    text: &Text,
    functions: &HashMap<&str, &Function>,
    globals: &HashMap<String, Global>,
) -> Result<Kernel> {
    let mut lowering = Lowering::new(functions);
    lowering.code.files = text.files.clone();
    for (name, global) in globals {
        lowering
            .scope()
            .symbols
            .insert(name.clone(), Symbol::Address(global.address));
    }
    for variable in text
        .variables
        .iter()
        .filter(|variable| variable.space == "shared")
    {
        lowering.declare(variable)?;
    }
    let mut parameters: Vec<Parameter> = Vec::new();
    for variable in &function.parameters {
        let end = parameters.last().map_or(0, |last| last.offset + last.size);
        let offset = end.next_multiple_of(variable.align as u32);
        parameters.push(Parameter {
            offset,
            size: variable.size as u32,
        });
        lowering
            .scope()
            .symbols
            .insert(variable.name.clone(), Symbol::Parameter(offset));
    }
    if parameters
        .iter()
        .map(|parameter| u64::from(parameter.size))
        .sum::<u64>()
        > 32764
    {
        return Err(Fault::new(
            Kind::Unsupported,
            "more than 32764 bytes of parameters",
        ));
    }
    lowering.function(function)?;
    lowering.emit(Op::Exit, 0);
    lowering.place_dynamic_shared();
    lowering.keep_shared_registers();
    let mut code = lowering.finish()?;
    compact(&mut code);
    let shape = |name: &str| {
        function.limits.get(name).map(|numbers| {
            let mut shape = [1; 3];
            for (to, from) in shape.iter_mut().zip(numbers) {
                *to = *from;
            }
            shape
        })
    };
    Ok(Kernel {
        name: function.name.as_str().into(),
        parameters,
        static_shared: lowering.shared - SHARED_START,
        local: lowering.local.next_multiple_of(16),
        max_threads: shape("maxntid"),
        required_threads: shape("reqntid"),
        cluster: shape("reqnctapercluster"),
        code,
    })
}

fn compact(code: &mut Code) {
    code.instructions.shrink_to_fit();
    code.lines.shrink_to_fit();
}

/// The state of decoding one kernel.
pub(crate) struct Lowering<'a> {
    functions: &'a HashMap<&'a str, &'a Function>,
    pub(crate) code: Code,
    pub(crate) scopes: Vec<Scope>,
    /// Values that constant registers hold: (64 bits wide, value).
    constants: HashMap<(bool, u64), u32>,
    /// The instruction that a label stands for, once it is known.
    labels: Vec<Option<u32>>,
    /// Where `ret` goes in the function being inlined; `None` in the kernel itself.
    returns: Vec<u32>,
    shared: u32,
    local: u32,
    /// Constant registers that hold addresses of dynamic shared memory, which begins where the
    /// static part ends.
    dynamic: Vec<(bool, u32)>,
    source: Option<(u32, u32)>,
    /// Scratch for results that are discarded: narrow, wide, predicate.
    pub(crate) discard: [u32; 3],
    /// A predicate that is always true.
    pub(crate) truth: u32,
    /// The predicate that is the condition code's carry.
    carry: u32,
}

impl<'a> Lowering<'a> {
    fn new(functions: &'a HashMap<&'a str, &'a Function>) -> Self {
        let mut code = Code::default();
        code.registers.narrow.push([0; 32]);
        code.registers.wide.push([0; 32]);
        code.registers.predicates.extend([0, !0, 0]);
        Self {
            functions,
            code,
            scopes: vec![Scope::default()],
            constants: HashMap::new(),
            labels: Vec::new(),
            returns: Vec::new(),
            shared: SHARED_START,
            local: 0,
            dynamic: Vec::new(),
            source: None,
            discard: [0; 3],
            truth: 1,
            carry: 2,
        }
    }

    /// Appends an instruction that runs in every lane.
    fn emit(&mut self, op: Op, line: u32) {
        self.emit_guarded(None, op, line);
    }

    fn emit_guarded(&mut self, guard: Option<(u32, bool)>, op: Op, line: u32) {
        self.code.instructions.push(Instruction { guard, op });
        self.code
            .lines
            .push(self.source.unwrap_or((u32::MAX, line)));
    }

    fn new_label(&mut self) -> u32 {
        self.labels.push(None);
        self.labels.len() as u32 - 1
    }

    fn bind(&mut self, label: u32) {
        self.labels[label as usize] = Some(self.code.instructions.len() as u32);
    }

    /// Replaces labels by instruction numbers.
    fn finish(&mut self) -> Result<Code> {
        let resolve = |label: &mut u32| match self.labels[*label as usize] {
            Some(at) => {
                *label = at;
                Ok(())
            }
            None => Err(Fault::new(
                Kind::Parse,
                "a branch to a label that is nowhere",
            )),
        };
        for instruction in &mut self.code.instructions {
            match &mut instruction.op {
                Op::Jump(label) => resolve(label)?,
                Op::Switch { targets, .. } => targets.iter_mut().try_for_each(resolve)?,
                _ => {}
            }
        }
        Ok(std::mem::take(&mut self.code))
    }

    /// Decodes a function's body in a scope of its own.
    fn function(&mut self, function: &'a Function) -> Result<()> {
        let body = function.body.as_deref().unwrap_or_default();
        self.open(body);
        for (at, statement) in body.iter().enumerate() {
            match statement {
                Statement::Open => self.open(&body[at + 1..]),
                Statement::Close => {
                    self.scopes.pop();
                }
                Statement::Label(name) => {
                    let label = self.label(name);
                    let label = label.ok_or_else(|| malformed(0, &format!("label {name}")))?;
                    self.bind(label);
                }
                Statement::Register { class, name, count } => {
                    self.register(class, name, *count)?;
                }
                Statement::Targets(_) => {}
                Statement::Variable(variable) => self.declare(variable)?,
                Statement::Location(file, line) => self.source = Some((*file, *line)),
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        self.scopes.pop();
        Ok(())
    }

    fn instruction(&mut self, instruction: &'a parse::Instruction) -> Result<()> {
        let guard = match &instruction.guard {
            Some((name, negated)) => {
                let negated = *negated;
                Some((self.predicate_named(name, instruction.line)?, negated))
            }
            None => None,
        };
        let line = instruction.line;
        let mut opcode = Opcode::new(&instruction.opcode, line);
        let operands = instruction.operands.as_slice();
        if opcode.base == "call" {
            if guard.is_some() {
                return Err(opcode.unsupported());
            }
            return self.call(&mut opcode, operands, line);
        }
        let op = self.decode(&mut opcode, operands)?;
        opcode.finish()?;
        let number = self.code.instructions.len();
        self.emit_guarded(guard, op, line);
        self.note_registers(number, opcode.base, operands);
        Ok(())
    }

    fn decode(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        if let Some(op) = self.control(opcode, operands)? {
            return Ok(op);
        }
        if let Some(op) = self.access(opcode, operands)? {
            return Ok(op);
        }
        if let Some(op) = self.asynchronous(opcode, operands)? {
            return Ok(op);
        }
        if let Some(op) = self.tensor(opcode, operands)? {
            return Ok(op);
        }
        if opcode.base == "cvt" {
            return self.convert(opcode, operands).map(Op::Compute);
        }
        match self.half(opcode, operands)? {
            Some(action) => Ok(Op::Compute(action)),
            None => self.arithmetic(opcode, operands).map(Op::Compute),
        }
    }

    /// Inlines a device function: its parameters are the caller's `.param` variables.
    fn call(&mut self, opcode: &mut Opcode, operands: &[Operand], line: u32) -> Result<()> {
        opcode.take("uni");
        let mut lists = operands.iter().filter_map(|operand| match operand {
            Operand::List(list) => Some(list.as_slice()),
            _ => None,
        });
        let name = operands.iter().find_map(|operand| match operand {
            Operand::Name(name, 0) => Some(name.as_str()),
            _ => None,
        });
        let name = name.ok_or_else(|| opcode.malformed("no function is named"))?;
        let function = match (name, self.functions.get(name)) {
            (_, Some(function)) => *function,
            ("vprintf", None) => return Ok(()),
            ("__assertfail", None) => {
                self.emit(Op::Trap(Kind::Assertion), line);
                return Ok(());
            }
            _ => {
                let what = format!("PTX line {line}: function {name}, which has no body");
                return Err(Fault::new(Kind::Unsupported, what));
            }
        };
        if self.code.instructions.len().max(self.labels.len()) > MOST_INSTRUCTIONS {
            let what = format!("PTX line {line}: more than {MOST_INSTRUCTIONS} instructions");
            return Err(Fault::new(Kind::Unsupported, what));
        }
        if self.returns.len() >= DEEPEST_CALL {
            let what = format!("PTX line {line}: recursion ({name})");
            return Err(Fault::new(Kind::Unsupported, what));
        }
        let results = if function.returns.is_empty() {
            None
        } else {
            lists.next()
        };
        let arguments = lists.next().unwrap_or_default();
        let mut bound = Vec::new();
        let results = results.unwrap_or_default();
        for (formal, actual) in function
            .returns
            .iter()
            .zip(results)
            .chain(function.parameters.iter().zip(arguments))
        {
            let Operand::Name(actual, 0) = actual else {
                return Err(opcode.malformed("an argument that is no variable"));
            };
            let symbol = self.symbol(actual);
            let symbol = symbol.ok_or_else(|| opcode.malformed(&format!("{actual} is unknown")))?;
            bound.push((formal.name.clone(), symbol));
        }
        if results.len() != function.returns.len() || arguments.len() != function.parameters.len() {
            return Err(opcode.malformed("the wrong number of arguments"));
        }
        // The callee sees module symbols and its own, nothing of the caller's.
        let callers = self.scopes.split_off(1);
        let mut scope = Scope::default();
        scope.symbols.extend(bound);
        self.scopes.push(scope);
        let end = self.new_label();
        self.returns.push(end);
        let source = self.source;
        self.function(function)?;
        self.source = source;
        self.returns.pop();
        self.bind(end);
        self.scopes.truncate(1);
        self.scopes.extend(callers);
        Ok(())
    }

    /// Gives a variable inside a function, or a shared one of the module, its place.
    fn declare(&mut self, variable: &Variable) -> Result<()> {
        let symbol = match variable.space.as_str() {
            "shared" if variable.is_extern || variable.size == 0 => Symbol::DynamicShared,
            "shared" => Symbol::Shared(reserve(&mut self.shared, variable)?),
            "local" | "param" => {
                let at = reserve(&mut self.local, variable)?;
                if self.local > MOST_LOCAL {
                    let what = format!("more than {MOST_LOCAL} bytes of local memory");
                    return Err(Fault::new(Kind::Unsupported, what));
                }
                Symbol::Local(at)
            }
            space => {
                return Err(malformed(
                    variable.line,
                    &format!("a .{space} variable in a function"),
                ));
            }
        };
        self.scope().symbols.insert(variable.name.clone(), symbol);
        Ok(())
    }

    /// Now that the static part is known: where dynamic shared memory begins.
    fn place_dynamic_shared(&mut self) {
        // As ptxas: 16 bytes are the alignment that every declaration may count on; shared
        // memory that asks for more (swizzled tiles) is aligned by 1024 when nothing is static.
        self.shared = self.shared.next_multiple_of(16);
        for (is_wide, index) in &self.dynamic {
            if *is_wide {
                for value in &mut self.code.registers.wide[*index as usize] {
                    *value += u64::from(self.shared);
                }
            } else {
                for value in &mut self.code.registers.narrow[*index as usize] {
                    *value += self.shared;
                }
            }
        }
    }
}

/// Takes the place of a variable from what `used` counts.
fn reserve(used: &mut u32, variable: &Variable) -> Result<u32> {
    let at = u64::from(*used).next_multiple_of(variable.align);
    match u32::try_from(at + variable.size) {
        Ok(end) if end < 1 << 24 => {
            *used = end;
            Ok(at as u32)
        }
        _ => Err(malformed(
            variable.line,
            &format!("{} is too large", variable.name),
        )),
    }
}

fn malformed(line: u32, what: &str) -> Fault {
    Fault::new(Kind::Parse, format!("PTX line {line}: {what}"))
}
