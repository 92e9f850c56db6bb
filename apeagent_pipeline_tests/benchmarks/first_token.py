"""DATASET ADAPTER...: how well the first token of an answer tells trading prompts from others, as AUC. A sketch."""
import sys, json, os
sys.path.insert(0, os.getcwd())
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from sklearn.metrics import roc_auc_score
from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student.base_model import resolve_base_model
from apeagent_pipeline.student.examples import prompt_of, read_examples, answer_of
from apeagent_pipeline.student.generation import Student
from collections import Counter
P = Path("apeagent_pipeline_tests/distillation")
from apeagent_pipeline.distillation.chain_of_draft import student_chat
def people(name): return [student_chat(json.loads(l)["prompt"]) for l in (P/f"people_{name}.jsonl").read_text().splitlines()]
test = read_examples(Path(sys.argv.pop(1)), "test")
sets = {
 "trading": [prompt_of(e) for e in test if e["kind"]=="trading"][:240],
 "people": people("trading"),
 "near": [prompt_of(e) for e in test if e["kind"]=="near"][:150],
 "pnear": people("near"),
 "distant": [prompt_of(e) for e in test if e["kind"] not in ("near","trading")][:100],
}
tok=None
def scores(s, prompts, firsts):
    out=[]; arg=[]
    texts=[s.tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
    order=np.argsort([len(t) for t in texts]); res=np.zeros(len(texts)); am=np.zeros(len(texts),bool)
    with torch.inference_mode():
        for i in range(0,len(order),16):
            idx=order[i:i+16]
            enc=s.tokenizer([texts[j] for j in idx], return_tensors="pt", padding=True, add_special_tokens=False)
            lg=s.model(**enc, logits_to_keep=1).logits[:,-1].float()
            pr=lg.softmax(-1)
            res[idx]=pr[:,firsts].sum(-1).numpy(); am[idx]=np.isin(pr.argmax(-1).numpy(), firsts)
    return res, am
if __name__=="__main__":
  for adapter in sys.argv[1:]:
    s=Student.load(resolve_base_model(SMOLLM2, Path(".apeagent/cache/models")), Path(adapter)); s.model.eval()
    ans=[answer_of(e) for e in test if e["kind"]=="trading"]
    c=Counter(s.tokenizer(a,add_special_tokens=False)["input_ids"][0] for a in ans)
    firsts=np.array([t for t,n in c.items() if n>=3])
    r={k:scores(s,v,firsts) for k,v in sets.items()}
    eps=1e-9; lo=lambda x: np.log(x+eps)-np.log(1-x+eps)
    pos=np.r_[r["trading"][0]]; neg=np.r_[r["near"][0]]
    def fpr_at(pos,neg,t): 
        th=np.quantile(pos,1-t); return float((neg>=th).mean())
    print(adapter, [s.tokenizer.decode([t]) for t in firsts])
    print("  begins a trade: "+", ".join(f"{k} {int(v[1].sum())}/{len(v[1])}" for k,v in r.items()))
    for pk in ("trading","people"):
        print("  ",pk, " ".join(f"{nk}: auc {roc_auc_score(np.r_[np.ones(len(r[pk][0])),np.zeros(len(r[nk][0]))],np.r_[r[pk][0],r[nk][0]]):.4f} fpr@98 {fpr_at(r[pk][0],r[nk][0],.98):.3f} fpr@95 {fpr_at(r[pk][0],r[nk][0],.95):.3f}" for nk in ("near","pnear","distant")), flush=True)

