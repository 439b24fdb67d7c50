# DIOR beyond the published protocols: Cascade R-CNN, the paper's schedule, the last epoch.
_base_ = [
    "./_base_/models/cascade-rcnn_itpn.py",
    "./_base_/datasets/dior.py",
    "./_base_/schedules/adamw_1x.py",
    "./_base_/runtime.py",
]

protocol = "paper"
# Lists of a base are replaced whole, so the three heads stand here; each refines finer errors than the last.
deviations = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    roi_head=dict(
        bbox_head=[
            dict(
                type="Shared2FCBBoxHead",
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=20,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds),
                reg_class_agnostic=True,
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
            for stds in deviations
        ]
    ),
)
