"""Mutants that are right answers, each with the reason: exercise -> reason -> "operator: old line -> new line"."""

# fmt: off
# ruff: noqa: E501
EQUIVALENTS: dict[str, dict[str, list[str]]] = {
    "ex01_int8_symmetric": {
        "|x / scale| is at most 127 up to float32 rounding, so nothing is clamped": [
            'call dropped: q = (x / scale).round().clamp(-127, 127).to(torch.int8) -> q = (x / scale).round().to(torch.int8)',
            'argument dropped: q = (x / scale).round().clamp(-127, 127).to(torch.int8) -> q = (x / scale).round().clamp(-127).to(torch.int8)',
            'constant: q = (x / scale).round().clamp(-127, 127).to(torch.int8) -> q = (x / scale).round().clamp(-127, 128).to(torch.int8)',
            'constant: q = (x / scale).round().clamp(-127, 127).to(torch.int8) -> q = (x / scale).round().clamp(-127, 254).to(torch.int8)',
            'constant: q = (x / scale).round().clamp(-127, 127).to(torch.int8) -> q = (x / scale).round().clamp(-128, 127).to(torch.int8)',
            'constant: q = (x / scale).round().clamp(-127, 127).to(torch.int8) -> q = (x / scale).round().clamp(-254, 127).to(torch.int8)',
        ],
        "float32 is the default type": [
            'argument dropped: scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny) -> scale = (largest / 127).clamp(min=torch.finfo().tiny)',
        ],
        "an integer times a float32 scale is float32": [
            'call dropped: return q.float() * scale -> return q * scale',
            'other function: return q.float() * scale -> return q.int() * scale',
        ],
    },
    "ex02_kv_cache_size": {
        "the product does not depend on the order": [
            'arguments swapped: one = kv_cache_bytes(1, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element) -> one = kv_cache_bytes(seq_len, 1, num_layers, num_kv_heads, head_dim, bytes_per_element)',
        ],
    },
    "ex04_gptq": {
        "damping alone makes H regular, and a dead column moves no other: what stands on its diagonal does not matter": [
            'statement dropped: hessian[dead, dead] = 1 -> pass',
            'constant: hessian[dead, dead] = 1 -> hessian[dead, dead] = 2',
            'constant: hessian[dead, dead] = 1 -> hessian[dead, dead] = 0',
            'constant: dead = hessian.diagonal() == 0 -> dead = hessian.diagonal() == 1',
            'constant: dead = hessian.diagonal() == 0 -> dead = hessian.diagonal() == -1',
        ],
        "the same result, stored elsewhere": [
            'no longer in place: hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)) -> hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))',
            'no longer in place: weight[:, j + 1:] -= error[:, None] * factor[j, j + 1:] -> weight[:, j + 1:] = weight[:, j + 1:] - error[:, None] * factor[j, j + 1:]',
        ],
        "the grid is free: it need not hold 0": [
            'call dropped: low, high = (group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)) -> low, high = (group.amin(1), group.amax(1).clamp(min=0))',
            'call dropped: low, high = (group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)) -> low, high = (group.amin(1).clamp(max=0), group.amax(1))',
            'constant: low, high = (group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)) -> low, high = (group.amin(1).clamp(max=1), group.amax(1).clamp(min=0))',
            'constant: low, high = (group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)) -> low, high = (group.amin(1).clamp(max=0), group.amax(1).clamp(min=-1))',
        ],
        "damping from 0.5 to 5 % of the diagonal is fine, whether of its mean, its largest or each element": [
            'constant: hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)) -> hessian += 0.02 * hessian.diagonal().mean() * torch.eye(len(hessian))',
            'constant: hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)) -> hessian += 0.005 * hessian.diagonal().mean() * torch.eye(len(hessian))',
            'call dropped: hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)) -> hessian += 0.01 * hessian.diagonal() * torch.eye(len(hessian))',
            'other function: hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)) -> hessian += 0.01 * hessian.diagonal().amax() * torch.eye(len(hessian))',
        ],
        "a regular matrix has one inverse": [
            'other function: factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True) -> factor = torch.linalg.cholesky(torch.linalg.pinv(hessian), upper=True)',
        ],
        "another name of the same dimension": [
            'constant: for j in range(weight.shape[1]): -> for j in range(weight.shape[-1]):',
            'other argument: for j in range(weight.shape[1]): -> for j in range(inputs.shape[1]):',
            'constant: low, high = (group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)) -> low, high = (group.amin(-1).clamp(max=0), group.amax(1).clamp(min=0))',
            'constant: low, high = (group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)) -> low, high = (group.amin(1).clamp(max=0), group.amax(-1).clamp(min=0))',
        ],
        "any tiny floor will do": [
            'constant: scale = ((high - low) / (2 ** bits - 1)).clamp(min=1e-12) -> scale = ((high - low) / (2 ** bits - 1)).clamp(min=2e-12)',
            'constant: scale = ((high - low) / (2 ** bits - 1)).clamp(min=1e-12) -> scale = ((high - low) / (2 ** bits - 1)).clamp(min=5e-13)',
        ],
        "the grid is free: the zero point may be rounded either way": [
            'other function: return (scale, (-low / scale).round()) -> return (scale, (-low / scale).floor())',
            'other function: return (scale, (-low / scale).round()) -> return (scale, (-low / scale).ceil())',
            'other function: return (scale, (-low / scale).round()) -> return (scale, (-low / scale).trunc())',
            'arithmetic: return (scale, (-low / scale).round()) -> return (scale, (-low // scale).round())',
        ],
        "the grid is free: it need not use the last of the 2**bits levels": [
            'constant: scale = ((high - low) / (2 ** bits - 1)).clamp(min=1e-12) -> scale = ((high - low) / (2 ** bits - 2)).clamp(min=1e-12)',
        ],
    },
    "ex05_continuous_batching": {
        "has_unfinished is read as a condition: what is true or false is as good as a bool": [
            'call dropped: return bool(self.running or self.waiting) -> return self.running or self.waiting',
        ],
        "a tuple of the ids serves a caller as well: it can be neither changed nor shared": [
            'other function: scheduled = list(self.running) -> scheduled = tuple(self.running)',
        ],
    },
    "ex06_inference_api": {
        "the engine refuses an empty prompt itself, which is a 400": [
            'min_length= dropped: prompt: str = Field(min_length=1) -> prompt: str = Field()',
            'constant: prompt: str = Field(min_length=1) -> prompt: str = Field(min_length=0)',
        ],
        "loops that step beside each other take turns at the lock, and end when there is nothing left to do": [
            'always: if stepping is None or stepping.done(): -> if True:',
            'call dropped: if stepping is None or stepping.done(): -> if stepping is None or stepping:',
        ],
        "a body of /health is not asked for": [
            "statement dropped: return {'status': 'ok'} -> pass",
            "None returned: return {'status': 'ok'} -> return",
        ],
        "metrics may come in any order": [
            "order: for name, meaning in (('num_requests_running', 'Requests being computed.'), ('num_requests_waiting', 'Requests that wait.')): -> for name, meaning in (('num_requests_waiting', 'Requests that wait.'), ('num_requests_running', 'Requests being computed.')):",
            "order: for name, meaning in (('prompt_tokens', 'Tokens in prompts.'), ('generation_tokens', 'Tokens generated.')): -> for name, meaning in (('generation_tokens', 'Tokens generated.'), ('prompt_tokens', 'Tokens in prompts.')):",
        ],
        "an event without new text is allowed": [
            'always: if len(output.text) > sent or output.finished: -> if True:',
            'comparison: if len(output.text) > sent or output.finished: -> if len(output.text) >= sent or output.finished:',
        ],
        "what is logged is free": [
            "statement dropped: logging.getLogger('api').exception('the engine has failed') -> pass",
            "call dropped: logging.getLogger('api').exception('the engine has failed') -> logging.getLogger('api')",
            "call dropped: logging.getLogger('api').exception('the engine has failed') -> 'the engine has failed'",
            "call dropped: logging.getLogger('api').exception('the engine has failed') -> logging.exception('the engine has failed')",
            "argument dropped: logging.getLogger('api').exception('the engine has failed') -> logging.getLogger().exception('the engine has failed')",
        ],
        "the words of an error are free": [
            "argument dropped: raise HTTPException(503, 'the engine has failed') -> raise HTTPException(503) (number 1)",
            "argument dropped: raise HTTPException(503, 'the engine has failed') -> raise HTTPException(503) (number 3)",
            'argument dropped: raise HTTPException(400, str(error)) from None -> raise HTTPException(400) from None',
            "argument dropped: raise HTTPException(503, 'the engine has failed') -> raise HTTPException(503) (number 2)",
            'index dropped: reasons = [f"{each[\'loc\'][-1]}: {each[\'msg\']}" for each in error.errors()] -> reasons = [f"{each[\'loc\']}: {each[\'msg\']}" for each in error.errors()]',
            'index dropped: reasons = [f"{each[\'loc\'][-1]}: {each[\'msg\']}" for each in error.errors()] -> reasons = [f"{each[\'loc\'][-1]}: {each}" for each in error.errors()]',
            'argument dropped: raise HTTPException(400, str(error)) from None -> raise HTTPException(400, str()) from None',
            'other argument: raise HTTPException(400, str(error)) from None -> raise HTTPException(400, str(engine)) from None',
            'constant: reasons = [f"{each[\'loc\'][-1]}: {each[\'msg\']}" for each in error.errors()] -> reasons = [f"{each[\'loc\'][-0]}: {each[\'msg\']}" for each in error.errors()]',
        ],
        "any 4xx refuses": [
            "constant: return JSONResponse({'detail': reasons}, 422) -> return JSONResponse({'detail': reasons}, 423)",
            "constant: return JSONResponse({'detail': reasons}, 422) -> return JSONResponse({'detail': reasons}, 421)",
            'constant: raise HTTPException(400, str(error)) from None -> raise HTTPException(401, str(error)) from None',
        ],
        "an endpoint that raises something else, then or at what follows, answers 500": [
            "call dropped: raise HTTPException(503, 'the engine has failed') -> raise 503 (number 1)",
            "arguments swapped: raise HTTPException(503, 'the engine has failed') -> raise HTTPException('the engine has failed', 503) (number 1)",
            "statement dropped: if output is None: | raise HTTPException(503, 'the engine has failed') -> pass",
            "other argument: raise HTTPException(503, 'the engine has failed') -> raise engine(503, 'the engine has failed') (number 1)",
            "statement dropped: raise HTTPException(503, 'the engine has failed') -> pass (number 2)",
            'other argument: if output is None: -> if engine is None:',
            'constant: if output is None: -> if output is 0:',
            "call dropped: raise HTTPException(503, 'the engine has failed') -> raise 503 (number 2)",
            "arguments swapped: raise HTTPException(503, 'the engine has failed') -> raise HTTPException('the engine has failed', 503) (number 2)",
            'constant: queue.put_nowait(None) -> queue.put_nowait(0)',
            "other argument: raise HTTPException(503, 'the engine has failed') -> raise engine(503, 'the engine has failed') (number 2)",
        ],
    },
    "ex07_prune_and_distill": {
        "squares have the order of magnitudes": [
            'other function: smallest = weight.abs().flatten().argsort()[:num_pruned] -> smallest = weight.square().flatten().argsort()[:num_pruned]',
        ],
        "logits are [positions, classes] there: dim=1 is the last, and what torch takes where none is given": [
            'dim= dropped: log_q = F.log_softmax(student / temperature, dim=-1) -> log_q = F.log_softmax(student / temperature)',
            'dim= dropped: p = F.softmax(teacher / temperature, dim=-1) -> p = F.softmax(teacher / temperature)',
            'sign or not dropped: log_q = F.log_softmax(student / temperature, dim=-1) -> log_q = F.log_softmax(student / temperature, dim=1)',
            'sign or not dropped: p = F.softmax(teacher / temperature, dim=-1) -> p = F.softmax(teacher / temperature, dim=1)',
            'constant: log_q = F.log_softmax(student / temperature, dim=-1) -> log_q = F.log_softmax(student / temperature, dim=--1)',
            'constant: p = F.softmax(teacher / temperature, dim=-1) -> p = F.softmax(teacher / temperature, dim=--1)',
        ],
        "the number of steps, and when to prune, are free": [
            'first round dropped: for step in range(180): -> for step in range(1, 180):',
            'last round dropped: for step in range(180): -> for step in range(180 - 1):',
            'condition negated: if step == 110: -> if not step == 110:',
            'always: if step == 110: -> if True:',
            'constant: for step in range(180): -> for step in range(181):',
            'constant: for step in range(180): -> for step in range(179):',
            'constant: for step in range(180): -> for step in range(360):',
            'comparison: if step == 110: -> if step != 110:',
            'constant: if step == 110: -> if step == 111:',
            'constant: if step == 110: -> if step == 109:',
            'constant: if step == 110: -> if step == 55:',
            'constant: if step == 110: -> if step == 0:',
        ],
        "temperature and alpha are free": [
            'temperature= dropped: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, alpha=0.9)',
            'alpha= dropped: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, temperature=4.0)',
            'constant: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, temperature=5.0, alpha=0.9)',
            'constant: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, temperature=3.0, alpha=0.9)',
            'constant: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, temperature=2.0, alpha=0.9)',
            'constant: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, temperature=8.0, alpha=0.9)',
            'constant: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, temperature=4.0, alpha=1.9)',
            'constant: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, temperature=4.0, alpha=1.8)',
            'constant: loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.9) -> loss = distillation_loss(*logits, labels, temperature=4.0, alpha=0.45)',
        ],
        "the network is free: a linear student reaches the accuracy too": [
            'other function: student = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)) -> student = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Identity(), torch.nn.Linear(16, 10))',
        ],
        "the teacher is frozen": [
            'other function: with torch.no_grad(): -> with torch.enable_grad(): (number 1)',
        ],
        "the learning rate is free": [
            'constant: optimizer = torch.optim.Adam(student.parameters(), lr=0.01) -> optimizer = torch.optim.Adam(student.parameters(), lr=0.02)',
        ],
        "the same weights: half of them counted from the end, or the layers in another order": [
            'constant: masks = {layer: magnitude_mask(layer.weight, 0.5) for layer in layers} -> masks = {layer: magnitude_mask(layer.weight, -0.5) for layer in layers}',
            'order: layers = (student[0], student[2]) -> layers = (student[2], student[0])',
        ],
    },
}
