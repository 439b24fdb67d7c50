_base_ = ["mmseg::_base_/default_runtime.py"]
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
find_unused_parameters = False
tiling = dict(window=512, overlap=256, margin=0, panel=2048, batch_size=4)
protocol = "official"
