# python datasets/prepare.py isprs_vaihingen --root DIR --out INDEX_DIR --tile 512 --stride 256
_base_ = ["./isprs.py"]
isprs_vaihingen_index = "{{$ISPRS_VAIHINGEN_INDEX:data/isprs_vaihingen}}"
dataset_name = "ISPRS Vaihingen test"
train_dataloader = dict(dataset=dict(index=isprs_vaihingen_index))
val_dataloader = dict(dataset=dict(index=isprs_vaihingen_index))
test_dataloader = dict(dataset=dict(index=isprs_vaihingen_index))
