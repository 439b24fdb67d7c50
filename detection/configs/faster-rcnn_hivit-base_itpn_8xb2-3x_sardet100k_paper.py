# SARDet-100K as the CoDe-MAE paper states it: 800 x 800, warm-up of 500 steps, 36 epochs; the last counts.
# AP 61.1, AP50 90.6, AP75 66.6 (paper); not yet run here.
_base_ = [
    "./_base_/models/faster-rcnn_itpn.py",
    "./_base_/datasets/sardet100k.py",
    "./_base_/schedules/adamw_3x.py",
    "./_base_/runtime.py",
]

protocol = "paper"
model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    backbone=dict(modality="sar"),
    roi_head=dict(bbox_head=dict(num_classes=6)),
)
