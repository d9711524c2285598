"""Three ways to code descriptors: 1,000 training and 400 held-out pictures, SIFT alone.

    python records/2026-11-28_claims/encoders.py PACKED

Printed on two busy cores: omp2 50.7 / 51.0 / 50.5 % at C = 1, 10, 100; fista15 0.1 50.5 / 48.0 / 49.5;
fista15 0.2 50.5 / 48.2 / 49.8; fista60 0.1 48.8 / 45.8 / 48.2; threshold 0.3 57.8 / 53.2 / 54.8; 0.5
55.2 / 52.2 / 54.0; Fisher vectors at C = 0.1, 1, 10, 100 53.8 / 44.0 / 44.8 / 45.0.
"""

import sys
import time, torch, numpy as np
torch.set_num_threads(1)
from alexnet import baselines as b
from alexnet.opening import open_dataset
from alexnet.randomness import permutation
d=open_dataset(sys.argv[1],image_px=64); train=d.splits["train"]
order=permutation(0,"baseline: held out",0,len(train)); cut=len(train)//10
learn=np.sort(order[cut:cut+1000]); held=np.sort(order[:400])
def fista(x,D,penalty,steps):
    reach=float(torch.linalg.matrix_norm(D,2))**2; Dt=D.T.contiguous(); out=torch.empty(len(x),len(D))
    for rows,found in zip(torch.split(x,1024),torch.split(out,1024)):
        z=torch.zeros(len(rows),len(D)); ahead=z; m=1.0
        for _ in range(steps):
            moved=torch.addmm(ahead,torch.addmm(rows,ahead,D,alpha=-1),Dt,alpha=1/reach)
            f=torch.nn.functional.softshrink(moved,penalty/reach); l=(1+(1+4*m*m)**.5)/2
            ahead=torch.lerp(z,f,1+(m-1)/l); z,m=f,l
        found.copy_(z)
    return out
sample,places=b._sample(b.dense_sift,train.images[learn],0)
t0=time.time()
cb=b.SparseCodes(sample[:30000],places[:30000],{"atoms":512,"nonzeros":5},0); print("dictionary",round(time.time()-t0),flush=True)
desc={n:[x for _,x in b._blocks(b.dense_sift,train.images[i])] for n,i in (("l",learn),("h",held))}
print("sift",round(time.time()-t0),flush=True)
old=b.sparse_codes
def run(name,coder):
    t=time.time(); b.sparse_codes=lambda x,D,n: coder(x,D)
    f={n:np.concatenate([cb.encode(x) for x in v]) for n,v in desc.items()}
    r=[round(100*b._Classifier(c).fit(f["l"],train.labels[learn]).misses(f["h"],train.labels[held]),1) for c in (1,10,100)]
    b.sparse_codes=old; nz=None
    print(f"{name}: {r} % of 400 at C=1,10,100; {time.time()-t:.0f} s",flush=True)
run("omp2",lambda x,D: old(x,D,2))
run("fista15 .1",lambda x,D: fista(x,D,.1,15))
run("fista15 .2",lambda x,D: fista(x,D,.2,15))
run("fista60 .1",lambda x,D: fista(x,D,.1,60))
run("threshold .3",lambda x,D: torch.nn.functional.softshrink(x@D.T,.3))
run("threshold .5",lambda x,D: torch.nn.functional.softshrink(x@D.T,.5))
fv=b.FisherVectors(sample,places,{"gaussians":64},0)
f={n:np.concatenate([fv.encode(x) for x in v]) for n,v in desc.items()}
print("fisher",[round(100*b._Classifier(c).fit(f["l"],train.labels[learn]).misses(f["h"],train.labels[held]),1) for c in (.1,1,10,100)],flush=True)
