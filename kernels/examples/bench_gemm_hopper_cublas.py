import torch,time
torch.manual_seed(0)
T=16384
def med(f,n=10):
    torch.cuda.synchronize(); time.sleep(0.15)
    for _ in range(2): f()
    ts=[]
    for _ in range(n):
        s=torch.cuda.Event(enable_timing=True);e=torch.cuda.Event(enable_timing=True)
        s.record();f();e.record();torch.cuda.synchronize();ts.append(s.elapsed_time(e))
    ts.sort();return ts[n//2]
print(torch.cuda.get_device_name())
for name,K,N in [("3B qkv",2048,2560),("3B o",2048,2048),("3B gate/up",2048,22016),("3B down",11008,2048),("8B qkv",4096,6144),("8B gate/up",4096,28672),("8B down",14336,4096)]:
    x=torch.randn(T,K,device='cuda',dtype=torch.bfloat16)*0.5; w=torch.randn(N,K,device='cuda',dtype=torch.bfloat16)*0.5; dy=torch.randn(T,N,device='cuda',dtype=torch.bfloat16)*0.5
    y=torch.empty(T,N,device='cuda',dtype=torch.bfloat16); dx=torch.empty(T,K,device='cuda',dtype=torch.bfloat16)
    a=med(lambda: torch.matmul(x,w.t(),out=y)); b=med(lambda: torch.matmul(dy,w,out=dx))
    fl=2*T*K*N
    print(f"cuBLAS {name:<12} forward {a:8.3f} ms {fl/a/1e9:7.1f}   dX {b:8.3f} ms {fl/b/1e9:7.1f} TFLOP/s", flush=True)
    del x,w,dy,y,dx
x=torch.randn(2048,2048,device='cuda',dtype=torch.bfloat16)*0.5; w=torch.randn(151936,2048,device='cuda',dtype=torch.bfloat16)*0.5
a=med(lambda: torch.matmul(x,w.t())); print(f"cuBLAS 3B head 2048 rows {a:8.3f} ms {2*2048*2048*151936/a/1e9:7.1f}")
